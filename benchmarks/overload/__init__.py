"""What two replicas with a shared Redis do when more is asked for than they can do.

Everything is a process of its own on loopback: Redis, the sandbox as upstream, the replicas, and
the load generator, which is an open loop: it sends at a fixed rate, whatever comes back, and
counts each latency from the moment at which the request was due. A closed loop would slow down
together with the server that it overloads, and see nothing.
"""
