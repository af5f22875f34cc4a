"""Checks that every implementation of a port has to pass.

Subclass a contract in a test module, say how to build the implementation, and pytest runs all of it::

    class TestLocalModel(ChatModelContract):
        def model(self) -> ChatModel: ...
        def requests(self) -> list[Request]: ...
"""
