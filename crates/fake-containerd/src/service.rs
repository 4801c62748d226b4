//! The common part of every RPC. The call is counted, meets its armed faults, needs a namespace,
//! and is one transaction on the state. After it, garbage is collected if the policy says so.

use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::timeout;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use crate::faults::Obstacle;
use crate::server::Connections;
use crate::state::State;

/// Header of the calls of another importer, whose violations and bytes do not count.
pub(crate) const FOREIGN_HEADER: &str = "fake-containerd-foreign";

/// Time for which calls wait for each other ([`Fault::Gather`](crate::Fault::Gather)).
const GATHERING: Duration = Duration::from_secs(20);

/// One implementation of all services. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Service {
    state: Arc<Mutex<State>>,
    pub(crate) connections: Arc<Connections>,
}

/// A call that has reached a namespace.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) rpc: &'static str,
    pub(crate) namespace: String,
    pub(crate) lease: Option<String>,
    /// True if the caller plays another importer, whose violations do not count.
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

    /// Returns the state for a call. Violations of another importer do not count.
    pub(crate) fn state_for(&self, call: &Call) -> MutexGuard<'_, State> {
        let mut state = self.state();
        state.lenient = call.foreign;
        state
    }

    /// Runs a unary call that needs a namespace.
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

    /// Runs a unary call without a namespace.
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

    /// Counts the call and lets its armed faults strike.
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
    /// Waits, stalls for ever, waits for other calls, or fails, as the obstacle says.
    pub(crate) async fn met(self) -> Result<(), Status> {
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        if self.stall {
            pending::<()>().await;
        }
        if let Some(others) = self.gathering
            && timeout(GATHERING, others.acquire()).await.is_err()
        {
            return Err(Status::unknown("the other calls did not come"));
        }
        self.failure.map_or(Ok(()), Err)
    }
}

/// Returns the answer, unless a fault loses it.
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

/// Returns the error for a request without a required message. containerd may crash on such a
/// request, so this is an error in every emulated version.
pub(crate) fn missing(state: &mut State, rpc: &str, field: &str) -> Status {
    state.violation(format!(
        "{rpc} was called without {field}, which not every containerd survives"
    ));
    Status::internal(format!("{rpc}: {field} is nil"))
}
