"""What an embedding is worth, by the protocols of the field: one a file, plain maths, no Ray.

Every protocol takes rows that are already cut to a width and L2-normalised (x_ND), labels [N], group codes [N] (0 to
G - 1) and the folds of the data set; it scores rows that some fold tests and no others, and ends in a `Tally` (sums a
group), so that intervals are one function for all of them. `rows` holds what they share::

    linear       logistic regression                  knn          cosine neighbours, k chosen on val
    fewshot      nearest centroid of 1 to 16 shots    retrieval    top-k accuracy, mean average precision
    clustering   k-means, adjusted Rand index         calibration  expected calibration error of probabilities
    ridge        gene expression (HEST)               mil          slides by gated attention (torch)
    segment      tokens against masks                 robustness   tissue against hospitals (PathoROB)
    stain        the same tile, stained anew          consistency  the same tissue, other scanners and stains (PLISM)
    adaptive     short-list on few numbers, re-rank on all: how nested embeddings are searched
"""
