#!/bin/sh
# How many compilers may run at once: one a core, and 1.5 GB of memory for each (files that include LibTorch need it).
cores=$(nproc)
by_memory=$(awk '/^MemAvailable:/ {print int($2 / 1500000)}' /proc/meminfo)
[ "$by_memory" -ge 1 ] || by_memory=1
[ "$cores" -lt "$by_memory" ] && echo "$cores" || echo "$by_memory"
