"""The Open Inference Protocol V2 over gRPC, where the option `grpc` is true: only then is this imported.

`messages.py` (what is said) -> `wire.py`, `codec.py` (tensors, where the model is) -> `servicer.py` (what each method
answers) -> `door.py` (counting, ids, statuses) -> `server.py` (the port).
"""
