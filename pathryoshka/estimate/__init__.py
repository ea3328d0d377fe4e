"""What a run will cost before its first cent, and how it would behave at any size.

prices    machines and storage: dated, with sources, yours to replace        rates     tiles a second of each stage
reckon    hours, money, bytes, the bottleneck; what would make it cheaper    tell      all of it in words
simulate  the same pipeline event by event: queues, failures, recovery   measure   rates of this machine, in a minute
"""
