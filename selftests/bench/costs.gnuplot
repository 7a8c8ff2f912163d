# gnuplot -e "data='costs.tsv'; file='costs.svg'" costs.gnuplot
# Instructions of the series for one of the base: a bar to the left is what is saved.
stats data using 2 every ::1 nooutput
rows = STATS_records
set terminal svg size 760,18*rows+90 dynamic background "white"
set output file
set title "instructions of the series for one of the base (left of 1: saved)"
set logscale x
set xrange [1e-6:10]
set format x "%g"
set yrange [rows:-1]
set ytics scale 0
set style fill solid 0.8
set grid xtics
unset key
ratio(base, series) = series / base
plot data using (1):0:(ratio($2, $3) < 1 ? ratio($2, $3) : 1):(ratio($2, $3) < 1 ? 1 : ratio($2, $3)):($0 - 0.35):($0 + 0.35):(ratio($2, $3) > 1 ? 1 : 2):ytic(1) every ::1 with boxxyerror linecolor variable
