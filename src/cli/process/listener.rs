//! Binding the address of a proxy.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpListener;

use crate::cli::exit::{CommandFailure, Exit};

/// Listens at `address`. If the address is taken or not allowed, the error has a remedy.
pub(crate) async fn bind_listener(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| {
        let fix = match e.kind() {
            io::ErrorKind::AddrInUse => {
                let port = address.port();
                format!(
                    "another program listens there (`ss -ltnp 'sport = :{port}'` or `lsof -i :{port}` names it); \
                     stop it, or choose another port with --listen"
                )
            }
            io::ErrorKind::PermissionDenied => {
                "ports below 1024 need more rights; choose another port with --listen".to_owned()
            }
            io::ErrorKind::AddrNotAvailable => "this machine has no such address".to_owned(),
            _ => "choose another address with --listen".to_owned(),
        };
        CommandFailure::new(Exit::Error, format!("cannot listen at {address}: {e}; {fix}")).into()
    })
}
