"""benchmarks: public data sets as data: what each holds, how it lies on disk, checked and made into tile data sets"""
