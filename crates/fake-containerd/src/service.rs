//! What every RPC has in common: it is counted, meets the faults that wait for it, needs a
//! namespace, is one transaction on the state, and garbage is collected after it where the policy
//! says so.

use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard};

use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use crate::faults::Obstacle;
use crate::server::Connections;
use crate::state::State;

/// Marks the calls of another importer, whose manners are not judged and whose bytes are not
/// counted.
pub(crate) const FOREIGN_HEADER: &str = "fake-containerd-foreign";

/// One service implementation for all; cheap to clone.
#[derive(Clone)]
pub(crate) struct Service {
    state: Arc<Mutex<State>>,
    pub(crate) connections: Arc<Connections>,
}

/// A call that got through to a namespace.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) rpc: &'static str,
    pub(crate) namespace: String,
    pub(crate) lease: Option<String>,
    /// Whether it plays another importer: its manners are not judged.
    pub(crate) foreign: bool,
}

impl Service {
    pub(crate) fn new(state: Arc<Mutex<State>>, connections: Arc<Connections>) -> Self {
        Service { state, connections }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().expect("no holder of this lock panics");
        state.lenient = false;
        state
    }

    /// The state for what a call does: what another importer does is not minded.
    pub(crate) fn state_for(&self, call: &Call) -> MutexGuard<'_, State> {
        let mut state = self.state();
        state.lenient = call.foreign;
        state
    }

    /// Carries out a unary call that needs a namespace.
    pub(crate) async fn unary<Q, A>(
        &self,
        rpc: &'static str,
        request: Request<Q>,
        act: impl FnOnce(&mut State, &Call, Q) -> Result<A, Status>,
    ) -> Result<Response<A>, Status> {
        let call = self.enter(rpc, request.metadata()).await?;
        let mut state = self.state_for(&call);
        let answer = act(&mut state, &call, request.into_inner());
        state.settle();
        delivered(&mut state, rpc, answer)
    }

    /// Carries out a unary call that knows no namespace.
    pub(crate) async fn global<Q, A>(
        &self,
        rpc: &'static str,
        request: Request<Q>,
        act: impl FnOnce(&mut State, Q) -> Result<A, Status>,
    ) -> Result<Response<A>, Status> {
        self.meet_faults(rpc).await?;
        let mut state = self.state();
        let answer = act(&mut state, request.into_inner());
        state.settle();
        delivered(&mut state, rpc, answer)
    }

    /// Counts the call, lets faults strike, and reads the headers.
    pub(crate) async fn enter(&self, rpc: &'static str, headers: &MetadataMap) -> Result<Call, Status> {
        self.meet_faults(rpc).await?;
        let header = |name: &str| {
            headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        let Some(namespace) = header("containerd-namespace").filter(|name| !name.is_empty()) else {
            self.state()
                .violation(format!("{rpc} was called without a namespace"));
            return Err(Status::failed_precondition(
                "namespace is required: failed precondition",
            ));
        };
        Ok(Call {
            rpc,
            namespace,
            lease: header("containerd-lease").filter(|id| !id.is_empty()),
            foreign: header(FOREIGN_HEADER).is_some(),
        })
    }

    /// Counts the call and lets the faults that wait for it strike.
    pub(crate) async fn meet_faults(&self, rpc: &'static str) -> Result<(), Status> {
        let obstacle = {
            let mut state = self.state();
            *state.log.calls.entry(rpc).or_default() += 1;
            state.faults.on_call(rpc)
        };
        obstacle.met().await
    }
}

impl Obstacle {
    /// Waits, stays silent for good, or fails, as the obstacle wants.
    pub(crate) async fn met(self) -> Result<(), Status> {
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        if self.stall {
            pending::<()>().await;
        }
        self.failure.map_or(Ok(()), Err)
    }
}

/// The answer, unless it is to get lost.
pub(crate) fn delivered<A>(
    state: &mut State,
    rpc: &str,
    answer: Result<A, Status>,
) -> Result<Response<A>, Status> {
    if state.faults.loses_answer(rpc) {
        return Err(Status::unavailable("error reading from server: EOF"));
    }
    answer.map(Response::new)
}

/// A request without a message it must carry. The real one may die of it, so this is an error
/// whatever the version.
pub(crate) fn missing(state: &mut State, rpc: &str, field: &str) -> Status {
    state.violation(format!(
        "{rpc} was called without {field}, which not every containerd survives"
    ));
    Status::internal(format!("{rpc}: {field} is nil"))
}
