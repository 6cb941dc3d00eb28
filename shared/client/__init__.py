"""What a controller in Python uses: commands by name, tickets for long work, and what a node found.

    client = PoCClient(load_settings())
    ticket = client.generate(PoCConfig(block_hash="...", ...), seconds=60)
    for nonce, distance in client.nonces(ticket.round_id):  # until the round has ended
        ...
    print(ticket.wait().total_valid)

`AsyncPoCClient` is the same for an event loop.

A Redis that crashes can lose a command. The client therefore sends it again, under the same id,
until there is an answer; the id makes sure that it is carried out once. While others wait in the
queue it does not: its own may be one of them. Answers are polled, since a subscription does not
outlive a restart of Redis.
"""

from shared.client.asynchronous import AsyncPoCClient, AsyncTicket
from shared.client.synchronous import PoCClient, Ticket
from shared.client.watching import ValidNonce

__all__ = ["AsyncPoCClient", "AsyncTicket", "PoCClient", "Ticket", "ValidNonce"]
