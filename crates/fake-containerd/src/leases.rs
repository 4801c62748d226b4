//! `containerd.services.leases.v1`.

use tonic::{Request, Response, Status};

use crate::filters::Filters;
use crate::service::{Service, missing};
use crate::state::{Labels, Lease, State, check_labels, timestamp, without_empty};
use crate::wire;
use crate::wire::generated::leases_server::Leases;

#[tonic::async_trait]
impl Leases for Service {
    async fn create(
        &self,
        request: Request<wire::CreateRequest>,
    ) -> Result<Response<wire::CreateResponse>, Status> {
        self.unary("Leases.Create", request, |state, call, request| {
            let labels: Labels = request.labels.into_iter().collect();
            check_labels(&labels)?;
            let id = if request.id.is_empty() {
                generated_id(state)
            } else {
                request.id
            };
            let created = state.now();
            let leases = &mut state.namespace_mut(&call.namespace).leases;
            if leases.contains_key(&id) {
                return Err(Status::already_exists(format!("lease {id:?}: already exists")));
            }
            let lease = Lease {
                labels: without_empty(labels),
                created,
                resources: Default::default(),
                seeded: call.foreign,
            };
            let answer = on_the_wire(&id, &lease);
            leases.insert(id.clone(), lease);
            state.check_lease(&id, &answer.labels.clone().into_iter().collect());
            state.changed(call.rpc, &call.namespace, &id, None);
            Ok(wire::CreateResponse { lease: Some(answer) })
        })
        .await
    }

    async fn delete(&self, request: Request<wire::DeleteRequest>) -> Result<Response<()>, Status> {
        self.unary("Leases.Delete", request, |state, call, request| {
            lease_mut(state, &call.namespace, &request.id)?;
            state.namespace_mut(&call.namespace).leases.remove(&request.id);
            state.dirty = true;
            state.changed(call.rpc, &call.namespace, &request.id, None);
            if request.sync {
                state.collect();
            }
            Ok(())
        })
        .await
    }

    async fn list(
        &self,
        request: Request<wire::ListRequest>,
    ) -> Result<Response<wire::ListResponse>, Status> {
        self.unary("Leases.List", request, |state, call, request| {
            let filters = Filters::parse(&request.filters)?;
            let leases = &state.namespace(&call.namespace).leases;
            let found = leases.iter().filter(|(id, lease)| {
                filters.accept(|path| match path {
                    ["id"] => Some(id.as_str()),
                    ["labels", key @ ..] => lease.labels.get(&key.join(".")).map(String::as_str),
                    _ => None,
                })
            });
            Ok(wire::ListResponse {
                leases: found.map(|(id, lease)| on_the_wire(id, lease)).collect(),
            })
        })
        .await
    }

    async fn add_resource(&self, request: Request<wire::AddResourceRequest>) -> Result<Response<()>, Status> {
        self.unary("Leases.AddResource", request, |state, call, request| {
            let Some(resource) = request.resource else {
                return Err(missing(state, call.rpc, "resource"));
            };
            let resource = supported(state, resource)?;
            lease_mut(state, &call.namespace, &request.id)?
                .resources
                .insert(resource);
            state.changed(call.rpc, &call.namespace, &request.id, Some(&request.id));
            Ok(())
        })
        .await
    }

    async fn delete_resource(
        &self,
        request: Request<wire::DeleteResourceRequest>,
    ) -> Result<Response<()>, Status> {
        self.unary("Leases.DeleteResource", request, |state, call, request| {
            let Some(resource) = request.resource else {
                return Err(missing(state, call.rpc, "resource"));
            };
            let resource = supported(state, resource)?;
            lease_mut(state, &call.namespace, &request.id)?
                .resources
                .remove(&resource);
            state.dirty = true;
            state.changed(call.rpc, &call.namespace, &request.id, Some(&request.id));
            Ok(())
        })
        .await
    }

    async fn list_resources(
        &self,
        request: Request<wire::ListResourcesRequest>,
    ) -> Result<Response<wire::ListResourcesResponse>, Status> {
        self.unary("Leases.ListResources", request, |state, call, request| {
            let lease = lease_mut(state, &call.namespace, &request.id)?;
            let resources = lease
                .resources
                .iter()
                .map(|(kind, id)| wire::Resource {
                    id: id.clone(),
                    r#type: kind.clone(),
                })
                .collect();
            Ok(wire::ListResourcesResponse { resources })
        })
        .await
    }
}

fn lease_mut<'a>(state: &'a mut State, namespace: &str, id: &str) -> Result<&'a mut Lease, Status> {
    state.lease_mut(namespace, id).ok_or_else(|| unknown(id))
}

/// Returns the (type, id) of a resource, if the emulated version knows its type.
fn supported(state: &State, resource: wire::Resource) -> Result<(String, String), Status> {
    let wire::Resource { id, r#type: kind } = resource;
    let known = match kind.as_str() {
        "content" | "ingests" => true,
        "images" => state.version.image_leases(),
        other => other.starts_with("snapshots/"),
    };
    if known {
        return Ok((kind, id));
    }
    Err(Status::unimplemented(format!(
        "resource type {kind} not supported yet: not implemented"
    )))
}

fn generated_id(state: &mut State) -> String {
    format!("{}-fake", state.next_number())
}

fn on_the_wire(id: &str, lease: &Lease) -> wire::Lease {
    wire::Lease {
        id: id.to_owned(),
        created_at: Some(timestamp(lease.created)),
        labels: lease.labels.clone().into_iter().collect(),
    }
}

fn unknown(id: &str) -> Status {
    Status::not_found(format!("lease {id:?}: not found"))
}
