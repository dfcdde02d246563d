"""Reading what strangers wrote, writing whole or not at all.

Everything in a file is checked before a tensor is read, and nothing in it is run. One file for each kind of file, and
they are imported one by one: the command line needs some of them before it needs PyTorch.
"""
