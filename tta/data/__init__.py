"""The data sets of the benchmarks: where they are, how they come here whole, and whether they are complete."""
