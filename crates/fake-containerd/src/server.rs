//! The socket: accepts connections, remembers them, and can break them all at once as a dying containerd does.

use std::net::Shutdown;
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::sync::{Arc, Mutex};

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use crate::service::Service;
use crate::wire::generated::{
    content_server::ContentServer, events_server::EventsServer, image_service_server::ImageServiceServer,
    images_server::ImagesServer, introspection_server::IntrospectionServer, leases_server::LeasesServer,
    namespaces_server::NamespacesServer, runtime_service_server::RuntimeServiceServer,
    version_server::VersionServer,
};

/// A service with tonic's own message limits out of the way; the codec has containerd's.
macro_rules! unlimited {
    ($server:ident, $service:expr) => {
        $server::new($service.clone())
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX)
    };
}

/// The connections that are open, as second handles to their sockets.
#[derive(Default)]
pub(crate) struct Connections(Mutex<Vec<StdStream>>);

impl Connections {
    /// Breaks every connection in both directions.
    pub(crate) fn break_all(&self) {
        for connection in self.0.lock().expect("no holder of this lock panics").drain(..) {
            // The peer may be gone already, which is what we want.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Registers a connection and hands it back.
    fn keep(&self, stream: UnixStream) -> std::io::Result<UnixStream> {
        let stream = stream.into_std()?;
        self.0
            .lock()
            .expect("no holder of this lock panics")
            .push(stream.try_clone()?);
        UnixStream::from_std(stream)
    }
}

/// A listening server; aborting it closes the listener and leaves the socket file, like SIGKILL.
pub(crate) struct Listening {
    tasks: [JoinHandle<()>; 2],
}

impl Listening {
    /// Binds the socket, replacing a stale file, and serves. Must be called inside a tokio runtime.
    pub(crate) fn start(socket: &Path, service: &Service, cri: bool) -> std::io::Result<Self> {
        match std::fs::remove_file(socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(socket)?;
        let (accepted, incoming) = mpsc::channel(16);
        let connections = Arc::clone(&service.connections);
        let accept = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if accepted.send(connections.keep(stream)).await.is_err() {
                    break;
                }
            }
        });
        let router = router(service, cri);
        let serve = tokio::spawn(async move {
            // Ends when the accepting task does; a failing connection is its client's business.
            let _ = router.serve_with_incoming(ReceiverStream::new(incoming)).await;
        });
        Ok(Listening {
            tasks: [accept, serve],
        })
    }

    pub(crate) fn stop(&self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn router(service: &Service, cri: bool) -> tonic::transport::server::Router {
    Server::builder()
        .add_service(unlimited!(ContentServer, service))
        .add_service(unlimited!(LeasesServer, service))
        .add_service(unlimited!(ImagesServer, service))
        .add_service(unlimited!(NamespacesServer, service))
        .add_service(unlimited!(IntrospectionServer, service))
        .add_service(unlimited!(VersionServer, service))
        .add_service(unlimited!(EventsServer, service))
        .add_optional_service(cri.then(|| unlimited!(ImageServiceServer, service)))
        .add_optional_service(cri.then(|| unlimited!(RuntimeServiceServer, service)))
}
