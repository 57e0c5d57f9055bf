//! Black-box tests of websockify: the harness.
