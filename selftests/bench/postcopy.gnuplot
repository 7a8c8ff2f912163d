# gnuplot -e "data='postcopy.tsv'; file='postcopy.svg'" postcopy.gnuplot
# How long a thread waits for a page that post-copy migration has not moved yet.
set terminal svg size 760,300 dynamic background "white"
set output file
set title "from a touch to the data, post-copy migration of 1 GiB at 100 MB/s"
set style data histograms
set style fill solid 0.8
set boxwidth 0.9
set logscale y
set yrange [0.1:100000]
set ylabel "ms"
set grid ytics
set key outside right top autotitle columnheader
plot data using 2:xtic(1), "" using 3
