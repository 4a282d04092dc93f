"""The same personalisation as a plain Flower app, in the form of Flower's own PyTorch quickstart: an baseline.

The server sends the whole model to every client; a client trains the exits with a DataLoader, the frozen layers run in
every epoch, and replies what it trained. As in the quickstart, model and data are opened once per process. In its
favour, replies carry the exits only, there is no separate round of evaluation, and a client has one core.
"""
