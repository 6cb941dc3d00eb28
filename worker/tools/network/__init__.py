"""The network around nodes, as its controllers make it: an epoch, from its block to who is paid.

    sampling   which artifacts a validator asks for
    dapi       the chain's API beside each participant's node: stores artifacts, hands votes on
    node       a node, as the controller speaks to it
    epoch      the phases: init, generate, stop, exchange, validate, count the votes
    here       nodes on this machine, one of which cheats
    run        the command, and how an epoch went

Sources: the network's controller as it is published. A participant has one node here, the chain
itself is a few fields, and proofs of inclusion are left out: nobody here would forge them.
"""
