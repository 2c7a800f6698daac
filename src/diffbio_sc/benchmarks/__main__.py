from diffbio_sc.benchmarks.command import main

raise SystemExit(main())
