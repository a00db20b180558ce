//! /metrics, /livez, /readyz on the network; status and debug on a 0600 unix socket.
