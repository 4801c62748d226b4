//! `containerd.services.containers.v1`: the list of containers. The service creates none.

use std::pin::Pin;

use futures_util::{Stream, stream};
use tonic::{Request, Response, Status};

use crate::service::Service;
use crate::wire;
use crate::wire::generated::containers_server::Containers;

#[tonic::async_trait]
impl Containers for Service {
    type ListStreamStream = Pin<Box<dyn Stream<Item = Result<wire::ListContainerMessage, Status>> + Send>>;

    async fn list_stream(
        &self,
        request: Request<wire::ListContainersRequest>,
    ) -> Result<Response<Self::ListStreamStream>, Status> {
        self.unary("Containers.ListStream", request, |state, call, _| {
            let containers = &state.namespace(&call.namespace).containers;
            let answers: Vec<_> = containers
                .iter()
                .map(|container| {
                    Ok(wire::ListContainerMessage {
                        container: Some(container.clone()),
                    })
                })
                .collect();
            Ok(Box::pin(stream::iter(answers)) as Self::ListStreamStream)
        })
        .await
    }
}
