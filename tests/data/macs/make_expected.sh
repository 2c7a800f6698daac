#!/usr/bin/env bash
# Makes the expected tables with MACS3 3.1.0. The reads are those of MACS3's own test set (CTCF, chr22:29-32 Mb, moved
# to 0; duplicates left out), the shallow controls random parts of its control; the counted fragments those of its 10x
# test set on chr22:36-39 Mb, moved to 0 and without their barcodes (MACS3 3.0.4).
set -euo pipefail
cd "$(dirname "$0")"
call() { macs3 callpeak -g 3e6 -n "$1" --outdir out "${@:2}" && mv "out/$1_peaks.narrowPeak" "$1.narrowPeak"; }
call equal_control -f BEDPE -t treatment.bedpe.gz -c control.bedpe.gz
call shallow_control -f BEDPE -t treatment.bedpe.gz -c shallow_control.bedpe.gz
call no_control -f BEDPE -t treatment.bedpe.gz
call shallow_control_reads -f BED --nomodel --extsize 200 -t treatment.bed.gz -c shallow_control.bed.gz
macs3 callpeak -g 3e7 -n counted --outdir out -f FRAG -t counted.frag.gz && mv out/counted_peaks.narrowPeak counted.narrowPeak
rm -r out
