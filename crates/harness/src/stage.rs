//! The containerd of one scenario, with a namespace that no other scenario uses.

use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard};

use containerd::Client;
use fake_containerd::{Fake, FakeConfig};
use lab::shared::{self, Shared};
use lab::{Containerd, Generation, Options, Parts};
use tokio::runtime::{Builder, Runtime};

use crate::unique;

/// The containerd on which a scenario runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The stand-in.
    Fake,
    /// A real containerd of this generation.
    Real(Generation),
}

impl From<Generation> for Place {
    fn from(generation: Generation) -> Place {
        Place::Real(generation)
    }
}

/// A containerd and a namespace in it.
#[derive(Clone)]
pub struct Stage {
    server: Server,
    namespace: String,
}

#[derive(Clone)]
enum Server {
    Fake(Arc<Fake>),
    Shared(&'static Shared),
    /// The programs and the socket of an [`Own`].
    Own(Arc<Parts>, PathBuf),
}

/// A real containerd that only this scenario uses, to stop, kill, replace or fill it.
pub struct Own {
    /// The containerd. The stage works only while it lives.
    pub containerd: Containerd,
    /// A namespace in it.
    pub stage: Stage,
}

/// Plays a scenario on the stand-in with this configuration, or on a containerd that other
/// scenarios use too.
///
/// # Panics
///
/// Panics if the scenario fails, if it crashes the server, or if the stand-in reports a violation.
pub fn play(place: impl Into<Place>, config: FakeConfig, scenario: impl AsyncFnOnce(&Stage)) {
    let Some(stage) = Stage::at(place.into(), config) else {
        return;
    };
    runtime().block_on(async {
        scenario(&stage).await;
        let alive = Client::connect(stage.socket(), stage.namespace()).await;
        assert!(alive.is_ok(), "the server did not survive: {alive:?}");
    });
    stage.assert_no_violations();
}

/// Plays a scenario on a real containerd that no other scenario uses.
///
/// # Panics
///
/// Panics if the scenario fails.
pub fn play_on_own(generation: Generation, options: &Options, scenario: impl AsyncFnOnce(&mut Own)) {
    if let Some(mut own) = Own::start(generation, options) {
        runtime().block_on(scenario(&mut own));
    }
}

/// Returns a runtime with two threads, since a scenario may block one of them.
fn runtime() -> Runtime {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("threads for a scenario")
}

impl Own {
    /// Starts a containerd. `None` leaves the scenario out.
    ///
    /// # Panics
    ///
    /// Panics if containerd does not start and the environment requires it.
    pub fn start(generation: Generation, options: &Options) -> Option<Own> {
        let containerd = shared::own(generation, options)?;
        let server = Server::Own(Arc::new(containerd.parts().clone()), containerd.socket());
        let stage = Stage::new(server);
        Some(Own { containerd, stage })
    }
}

impl Stage {
    /// Returns a stage at a place. `None` leaves the scenario out.
    ///
    /// # Panics
    ///
    /// Panics if containerd does not start and the environment requires it.
    pub fn at(place: Place, config: FakeConfig) -> Option<Stage> {
        match place {
            Place::Fake => Some(Stage::fake(config)),
            Place::Real(generation) => shared::shared(generation).map(Server::Shared).map(Stage::new),
        }
    }

    /// Starts a stand-in for this scenario only.
    ///
    /// # Panics
    ///
    /// Panics if the socket cannot be bound.
    pub fn fake(config: FakeConfig) -> Stage {
        Stage::new(Server::Fake(Arc::new(Fake::start_blocking(config))))
    }

    fn new(server: Server) -> Stage {
        Stage {
            server,
            namespace: format!("scenario-{}", unique()),
        }
    }

    /// Returns the same containerd with a namespace that no other scenario uses.
    #[must_use]
    pub fn elsewhere(&self) -> Stage {
        Stage::new(self.server.clone())
    }

    /// Returns the same containerd with a namespace of this name.
    #[must_use]
    pub fn in_namespace(&self, name: &str) -> Stage {
        Stage {
            server: self.server.clone(),
            namespace: name.to_owned(),
        }
    }

    /// Locks the Kubernetes namespace of a shared containerd. Other containerds need no lock.
    pub fn hold_kubernetes(&self) -> Option<MutexGuard<'static, ()>> {
        match self.server {
            Server::Shared(shared) => Some(shared.kubernetes()),
            Server::Fake(_) | Server::Own(..) => None,
        }
    }

    /// Returns the kind of containerd.
    pub fn place(&self) -> Place {
        self.parts()
            .map_or(Place::Fake, |parts| Place::Real(parts.generation))
    }

    /// Returns the programs of a real containerd.
    pub fn parts(&self) -> Option<&Parts> {
        match &self.server {
            Server::Fake(_) => None,
            Server::Shared(shared) => Some(&shared.parts),
            Server::Own(parts, _) => Some(parts),
        }
    }

    /// Returns the path of the socket.
    pub fn socket(&self) -> &Path {
        match &self.server {
            Server::Fake(fake) => fake.socket(),
            Server::Shared(shared) => &shared.socket,
            Server::Own(_, socket) => socket,
        }
    }

    /// Returns the name of the namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Connects a client to the namespace.
    ///
    /// # Panics
    ///
    /// Panics if containerd does not answer.
    pub async fn client(&self) -> Client {
        self.client_with(containerd::Options::default()).await
    }

    /// Connects a client with these options to the namespace.
    ///
    /// # Panics
    ///
    /// Panics if containerd does not answer.
    pub async fn client_with(&self, options: containerd::Options) -> Client {
        let client = Client::connect_with(self.socket(), &self.namespace, options).await;
        client.expect("containerd is there")
    }

    /// Returns the stand-in, if this is one, for checks that a real containerd cannot answer.
    pub fn as_fake(&self) -> Option<&Fake> {
        match &self.server {
            Server::Fake(fake) => Some(fake),
            Server::Shared(_) | Server::Own(..) => None,
        }
    }

    /// Returns the stand-in, in a scenario that only the stand-in can play.
    ///
    /// # Panics
    ///
    /// Panics on a real containerd.
    pub fn the_fake(&self) -> &Fake {
        self.as_fake().expect("this scenario runs on the stand-in")
    }

    /// Checks that no client call violated the rules that the stand-in knows.
    ///
    /// # Panics
    ///
    /// Panics if a call did.
    pub fn assert_no_violations(&self) {
        if let Some(fake) = self.as_fake() {
            assert_eq!(
                fake.violations(),
                Vec::<String>::new(),
                "violations that the stand-in reports"
            );
        }
    }
}
