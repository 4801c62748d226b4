//! The socket: accepts connections, remembers them, and can break them all at once as a dying
//! containerd does.

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
pub(crate) struct Connections(Mutex<Open>);

#[derive(Default)]
struct Open {
    streams: Vec<StdStream>,
    /// How often the server died; connections accepted before its last death are not welcome any
    /// more.
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

    /// Registers a connection that was accepted by a server of this number of deaths, and hands it
    /// back.
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
    // The peer may be gone already, which is what we want.
    let _ = stream.shutdown(Shutdown::Both);
}

/// A listening server.
pub(crate) struct Listening {
    tasks: [JoinHandle<()>; 2],
    /// A second handle to the listener. That it is no stream does not matter for shutting it down.
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
            // Unlike `accept().await`, which spins inside one poll on a listener that was shut
            // down, this lets go of the thread now and then, so that aborting the task takes
            // effect.
            while let Ok((stream, _)) = poll_fn(|context| listener.poll_accept(context)).await {
                if accepted.send(connections.keep(stream, deaths)).await.is_err() {
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
            listener: handle,
            connections: Arc::clone(&service.connections),
        })
    }

    /// Refuses new connections and breaks the others before it returns. The socket file stays, as
    /// after SIGKILL.
    pub(crate) fn die(&self) {
        let [accept, serve] = &self.tasks;
        // Aborted before it can notice: it must not try to accept from a listener that is shut
        // down.
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
