//! Wires that can be cut.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A relay to one address. Cut, it takes connections and bytes, and nothing arrives.
pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    cut: watch::Sender<bool>,
}

impl Wire {
    pub(crate) async fn new(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, state) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let mut state = state.clone();
                tokio::spawn(async move {
                    // Bytes that are on their way when the wire is cut are lost, and so is the connection.
                    until(&mut state, false).await;
                    let Ok(far) = TcpStream::connect(target).await else {
                        return;
                    };
                    let (mut near, mut far) = (near, far);
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        () = until(&mut state, true) => {}
                    }
                    until(&mut state, false).await;
                });
            }
        });
        Self { address, cut }
    }

    pub(crate) fn cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }
}

async fn until(state: &mut watch::Receiver<bool>, cut: bool) {
    // A wire that is no more is mended.
    let _ = state.wait_for(|now| *now == cut).await;
}
