from diffbio_sc._cli import main

raise SystemExit(main())
