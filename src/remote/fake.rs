//! FakeServer.
