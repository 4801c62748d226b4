//! `containerd.services.namespaces.v1`.

use tonic::{Request, Response, Status};

use crate::service::{Service, missing};
use crate::state::{Namespace, check_labels};
use crate::wire;
use crate::wire::generated::namespaces_server::Namespaces;

#[tonic::async_trait]
impl Namespaces for Service {
    async fn get(
        &self,
        request: Request<wire::GetNamespaceRequest>,
    ) -> Result<Response<wire::GetNamespaceResponse>, Status> {
        self.global("Namespaces.Get", request, |state, request| {
            // containerd reads the labels and finds none. A namespace that does not exist is not an
            // error.
            let namespace = state.namespace(&request.name);
            Ok(wire::GetNamespaceResponse {
                namespace: Some(on_the_wire(&request.name, namespace)),
            })
        })
        .await
    }

    async fn list(
        &self,
        request: Request<wire::ListNamespacesRequest>,
    ) -> Result<Response<wire::ListNamespacesResponse>, Status> {
        self.global("Namespaces.List", request, |state, _| {
            let namespaces = state
                .namespaces
                .iter()
                .map(|(name, namespace)| on_the_wire(name, namespace))
                .collect();
            Ok(wire::ListNamespacesResponse { namespaces })
        })
        .await
    }

    async fn create(
        &self,
        request: Request<wire::CreateNamespaceRequest>,
    ) -> Result<Response<wire::CreateNamespaceResponse>, Status> {
        self.global("Namespaces.Create", request, |state, request| {
            let Some(wanted) = request.namespace else {
                return Err(missing(state, "Namespaces.Create", "namespace"));
            };
            let labels = wanted.labels.clone().into_iter().collect();
            check_labels(&labels)?;
            if state.namespaces.contains_key(&wanted.name) {
                return Err(Status::already_exists(format!(
                    "namespace {:?}: already exists",
                    wanted.name
                )));
            }
            state.namespace_mut(&wanted.name).labels = labels;
            state.changed("Namespaces.Create", &wanted.name, &wanted.name, None);
            Ok(wire::CreateNamespaceResponse {
                namespace: Some(wanted),
            })
        })
        .await
    }
}

fn on_the_wire(name: &str, namespace: &Namespace) -> wire::Namespace {
    wire::Namespace {
        name: name.to_owned(),
        labels: namespace.labels.clone().into_iter().collect(),
    }
}
