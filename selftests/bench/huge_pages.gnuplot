# gnuplot -e "data='huge_pages.tsv'; file='huge_pages.svg'" huge_pages.gnuplot
# How many huge pages a process has after its snapshot child has exited.
set key autotitle columnheader
stats data using 1:3 nooutput
set terminal svg size 760,380 dynamic background "white"
set output file
set logscale x
set xrange [1:200]
set yrange [0:*]
set xlabel "seconds after the exit of the child that wrote the snapshot"
set ylabel "huge pages of 2 MiB"
set key outside right top
set grid
plot for [i=0:STATS_blocks-1] data index i using 1:3 with linespoints pt 7 lc i+1 title columnheader(1)." series", \
	for [i=0:STATS_blocks-1] data index i using 1:2 with linespoints pt 6 dt 2 lc i+1 title columnheader(1)." base"
