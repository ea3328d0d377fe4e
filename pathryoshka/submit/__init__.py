"""From a laptop to a cluster: a verb packaged, checked against the cluster, submitted to Ray Jobs and followed.

client   the Jobs API, its errors in words       attempts   which submission of a run is alive, what the next is called
package  what travels                            probe      what the cluster says of itself; runs there
look     may this run start there                follow     log lines until the end, over lost connections
"""
