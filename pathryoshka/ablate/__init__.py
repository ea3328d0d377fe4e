"""ablate: twins of one run, trained on the same views from one filling of the store, and what sets them apart"""
