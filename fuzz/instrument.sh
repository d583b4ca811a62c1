#!/bin/sh
# What cargo calls for each crate of the workspace in `cargo xtask fuzz`: rustc, with the counters
# that libFuzzer is guided by. Libraries stay as every other build has them; what is generic in
# them, as the parsers of JSON are, is compiled into our crates and counted there.
exec "$@" \
    -Copt-level=2 \
    -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares
