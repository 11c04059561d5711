//! JSON-RPC over HTTP to real nodes.
