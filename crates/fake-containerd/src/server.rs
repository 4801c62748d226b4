//! The socket. It accepts and records connections, and can break them all at once like a dying
//! containerd.

use std::future::poll_fn;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use crate::service::Service;
use crate::wire::generated::{
    containers_server::ContainersServer, content_server::ContentServer, diff_server::DiffServer,
    events_server::EventsServer, image_service_server::ImageServiceServer, images_server::ImagesServer,
    introspection_server::IntrospectionServer, leases_server::LeasesServer,
    namespaces_server::NamespacesServer, runtime_service_server::RuntimeServiceServer,
    snapshots_server::SnapshotsServer, version_server::VersionServer,
};

/// Removes tonic's own message limits from a service. The codec has containerd's limits.
macro_rules! unlimited {
    ($server:ident, $service:expr) => {
        $server::new($service.clone())
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX)
    };
}

/// The open connections, as second handles to their sockets.
#[derive(Default)]
pub(crate) struct Connections(Mutex<Open>);

#[derive(Default)]
struct Open {
    streams: Vec<StdStream>,
    /// Number of times that the server died. Connections accepted before its last death are closed.
    deaths: u64,
}

impl Connections {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.lock().expect("no holder of this lock panics")
    }

    /// Breaks every connection in both directions.
    pub(crate) fn break_all(&self) {
        self.open()
            .streams
            .drain(..)
            .for_each(|stream| break_off(&stream));
    }

    fn die(&self) {
        self.open().deaths += 1;
        self.break_all();
    }

    /// Registers a connection and returns it. `deaths` is the number of deaths at its accept.
    fn keep(&self, stream: UnixStream, deaths: u64) -> std::io::Result<UnixStream> {
        let stream = stream.into_std()?;
        let handle = stream.try_clone()?;
        let mut open = self.open();
        if open.deaths == deaths {
            open.streams.push(handle);
        } else {
            break_off(&handle);
        }
        drop(open);
        UnixStream::from_std(stream)
    }
}

fn break_off(stream: &StdStream) {
    // The peer may have closed the connection already, which is just as good.
    let _ = stream.shutdown(Shutdown::Both);
}

/// A listening server.
pub(crate) struct Listening {
    tasks: [JoinHandle<()>; 2],
    /// A second handle to the listener. Its type is a stream, which does not matter for shutting it
    /// down.
    listener: StdStream,
    connections: Arc<Connections>,
}

impl Listening {
    /// Binds the socket, replacing a stale file, and serves. Must be called inside a tokio runtime.
    pub(crate) fn start(socket: &Path, service: &Service, cri: bool) -> std::io::Result<Self> {
        match std::fs::remove_file(socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = StdListener::bind(socket)?;
        listener.set_nonblocking(true)?;
        let handle = StdStream::from(OwnedFd::from(listener.try_clone()?));
        let listener = UnixListener::from_std(listener)?;
        let (accepted, incoming) = mpsc::channel(16);
        let connections = Arc::clone(&service.connections);
        let deaths = connections.open().deaths;
        let accept = tokio::spawn(async move {
            // After the listener was shut down, `accept().await` would spin inside one poll. This
            // loop yields the thread now and then, so that aborting the task takes effect.
            while let Ok((stream, _)) = poll_fn(|context| listener.poll_accept(context)).await {
                if accepted.send(connections.keep(stream, deaths)).await.is_err() {
                    break;
                }
            }
        });
        let router = router(service, cri);
        let serve = tokio::spawn(async move {
            // Ends with the accepting task. A failing connection affects only its client.
            let _ = router.serve_with_incoming(ReceiverStream::new(incoming)).await;
        });
        Ok(Listening {
            tasks: [accept, serve],
            listener: handle,
            connections: Arc::clone(&service.connections),
        })
    }

    /// Refuses new connections, and breaks the open ones before it returns. The socket file stays,
    /// as after SIGKILL.
    pub(crate) fn die(&self) {
        let [accept, serve] = &self.tasks;
        // The task is aborted first, so that it does not accept from a listener that was shut down.
        accept.abort();
        break_off(&self.listener);
        self.connections.die();
        serve.abort();
    }
}

fn router(service: &Service, cri: bool) -> tonic::transport::server::Router {
    Server::builder()
        .add_service(unlimited!(ContentServer, service))
        .add_service(unlimited!(ContainersServer, service))
        .add_service(unlimited!(LeasesServer, service))
        .add_service(unlimited!(SnapshotsServer, service))
        .add_service(unlimited!(DiffServer, service))
        .add_service(unlimited!(ImagesServer, service))
        .add_service(unlimited!(NamespacesServer, service))
        .add_service(unlimited!(IntrospectionServer, service))
        .add_service(unlimited!(VersionServer, service))
        .add_service(unlimited!(EventsServer, service))
        .add_optional_service(cri.then(|| unlimited!(ImageServiceServer, service)))
        .add_optional_service(cri.then(|| unlimited!(RuntimeServiceServer, service)))
}
