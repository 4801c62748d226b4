//! `containerd.services.events.v1`: subscriptions. As in containerd, the call itself is answered
//! only with the first event that passes its filters.

use std::pin::Pin;

use async_stream::stream;
use futures_util::Stream;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tonic::{Request, Response, Status};

use crate::filters::Filters;
use crate::service::Service;
use crate::wire;
use crate::wire::generated::events_server::Events;

#[tonic::async_trait]
impl Events for Service {
    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<wire::Envelope, Status>> + Send>>;

    async fn subscribe(
        &self,
        request: Request<wire::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        // The subscription starts before the first await. So a test that sees the subscription
        // misses no event.
        let mut events = self.state().events.subscribe();
        self.meet_faults("Events.Subscribe").await?;
        let filters = Filters::parse(&request.into_inner().filters)?;
        let first = next(&mut events, &filters).await?;
        let stream = stream! {
            yield Ok(first);
            loop {
                let event = next(&mut events, &filters).await;
                let over = event.is_err();
                yield event;
                if over {
                    break;
                }
            }
        };
        Ok(Response::new(Box::pin(stream)))
    }
}

async fn next(events: &mut Receiver<wire::Envelope>, filters: &Filters) -> Result<wire::Envelope, Status> {
    loop {
        match events.recv().await {
            Ok(event) if accepts(filters, &event) => return Ok(event),
            // containerd drops events of slow subscribers too.
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return Err(Status::unavailable("the server is stopping")),
        }
    }
}

fn accepts(filters: &Filters, event: &wire::Envelope) -> bool {
    filters.accept(|path| match path {
        ["namespace"] => Some(event.namespace.as_str()),
        ["topic"] => Some(event.topic.as_str()),
        _ => None,
    })
}
