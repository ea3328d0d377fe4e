"""The embedding service: an exported student behind HTTP, neighbours, slides, and a page to look at them with.

How a request walks::

    page/, client   what speaks to the service        schema   what is said: the answers, as types
    gate            every request: token, size, time, counting; nothing is read before it may be
    door            the routes, as one FastAPI application; knows no Ray
    tile            bytes of a stranger -> uint8 pixels, refused by the header where it can be
    admission       how much may wait: what would wait too long is told to come back, with 429
    remote          the door's way to the students: batches over Ray Serve, asked again where a replica dies
    student         the deployment that holds the model and joins tiles of many requests
    lookup          an index of search/ as the door needs it          slides   deep zoom, regions, heat maps
    service         what the verb does: start, swap, drain           token    who may ask

A version is a student deployment and the doors that lead to it. A swap starts both anew beside the old ones, which
finish what they have begun; no answer mixes two models, and each says which one it is from.
"""
