//! The blobs of a pipe whose list of images comes last: they go to containerd as they come.
//!
//! The lease of the import holds them. When the list is there, [`import()`](crate::import()) finds
//! the blobs in place. The node drops those that it does not need together with the lease.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use bundle::{Bundle, Pipe};
use containerd::{BlobSource, BlobSpec, Client, Recovery, Written};
use oci_spec::image::Digest;
use tokio::task::JoinSet;

use crate::Error;
use crate::ingest::{Observer, PARALLEL_BLOBS, Pass, Passing};
use crate::labels::Labels;
use crate::lease::Lease;
use crate::pace::paced;
use crate::plan::Intent;
use crate::space::Forecast;
use crate::survey::{forget_lost, lost};

/// Smallest blob, in bytes, that is worth a look at the disk.
const LARGE: u64 = 1 << 20;

/// A bundle whose blobs have gone by.
#[derive(Debug)]
pub struct Brought {
    /// The bundle.
    pub bundle: Bundle,
    /// The blobs that were sent, with the number of bytes sent for each.
    pub sent: HashMap<Digest, u64>,
    /// The blobs that containerd did not take, with the reason of each.
    pub left_out: HashMap<Digest, String>,
}

/// Sends all blobs of a pipe that are named by their digests, and reads the pipe to its end.
///
/// A blob with wrong bytes is left out. The images that need it will fail. The lease stays, and
/// holds all blobs until the import gives it back. The caller gives it back after an error.
///
/// # Errors
///
/// Returns the bundle's error if the stream is cut off, damaged or no bundle. Returns the client's
/// error if containerd cannot take more blobs.
pub async fn take_blobs(
    client: &Client,
    pipe: Pipe,
    intent: &Intent,
    lease_id: &str,
    observer: &dyn Observer,
) -> Result<Brought, Error> {
    let mark = intent.source.lease_mark();
    let mut lease = Lease::acquire(client, lease_id, &mark).await?;
    let (mut pass, bundle) = Pass::through(pipe);
    let mut tasks = JoinSet::new();
    let (mut sent, mut left_out) = (HashMap::new(), HashMap::new());
    while let Some(Ok(passing)) = pass.next().await {
        lease.replace_if_old(client, &mark).await?;
        check_space(client, &passing, intent).await?;
        while tasks.len() >= PARALLEL_BLOBS {
            note(tasks.join_next().await, &mut sent, &mut left_out, observer)?;
        }
        tasks.spawn(send(
            client.clone(),
            lease.id().to_owned(),
            passing,
            intent,
            observer,
        ));
    }
    while !tasks.is_empty() {
        note(tasks.join_next().await, &mut sent, &mut left_out, observer)?;
    }
    let bundle = bundle.await.map_err(Error::Task)?.map_err(Error::Bundle)?;
    Ok(Brought {
        bundle,
        sent,
        left_out,
    })
}

/// Returns an error if a large blob would not fit on containerd's disk, or would leave less space
/// than `minFree`.
async fn check_space(client: &Client, blob: &Passing, intent: &Intent) -> Result<(), Error> {
    if blob.size < LARGE {
        return Ok(());
    }
    let forecast = intent
        .space
        .forecast(client, &[(&blob.digest, blob.size)])
        .await?;
    match forecast.as_ref().and_then(Forecast::shortage) {
        Some(shortage) => Err(Error::NoSpace(Box::new(shortage))),
        None => Ok(()),
    }
}

type Sent = (Digest, Result<Written, containerd::Error>);

/// Sends one blob. containerd holds a blob that it has under the lease, without its bytes.
fn send(
    client: Client,
    lease: String,
    Passing { digest, size, source }: Passing,
    intent: &Intent,
    observer: &dyn Observer,
) -> impl Future<Output = Sent> + Send + 'static {
    let spec = BlobSpec {
        digest: digest.clone(),
        size,
        labels: Labels::new(),
        progress: observer.bytes(),
    };
    let (pace, store) = (Arc::clone(&intent.pace), intent.space.store.clone());
    async move {
        if let Some(store) = &store
            && let Err(error) = forget_if_lost(&client, &digest, store).await
        {
            return (digest, Err(error));
        }
        let (source, _wanted) = paced(source as Arc<dyn BlobSource>, &pace);
        let written = client.write_blob(&lease, &spec, source).await;
        (digest, written)
    }
}

/// Makes containerd forget a blob that it lists and whose file is gone. Otherwise it would not take
/// the blob, and the pipe brings it only once.
async fn forget_if_lost(client: &Client, digest: &Digest, store: &Path) -> Result<(), containerd::Error> {
    let there = client.blob(digest).await?;
    let lost = lost(client, &there, Some(store)).await?;
    forget_lost(client, &lost, store).await
}

/// Notes the end of a blob. Only a failure that would hit all other blobs is an error.
fn note(
    joined: Option<Result<Sent, tokio::task::JoinError>>,
    sent: &mut HashMap<Digest, u64>,
    left_out: &mut HashMap<Digest, String>,
    observer: &dyn Observer,
) -> Result<(), Error> {
    let Some(joined) = joined else {
        return Ok(());
    };
    let (digest, written) = joined.map_err(Error::Task)?;
    match written {
        Ok(Written::Committed { sent_bytes }) => {
            observer.blob(&digest, Some(sent_bytes));
            sent.insert(digest, sent_bytes);
        }
        Ok(Written::Adopted | Written::Present) => observer.blob(&digest, None),
        // The catalog knows the wrong bytes, and the next read of the stream tells its fault.
        Err(error) if error.recovery() == Recovery::Content => {
            tracing::debug!(%digest, error = basics::chain(&error), "a blob of the pipe is left out");
        }
        Err(error)
            if matches!(error, containerd::Error::Source { .. })
                || error.recovery() == Recovery::Permanent =>
        {
            left_out.insert(digest, basics::chain(&error));
        }
        Err(error) => return Err(Error::Containerd(error)),
    }
    Ok(())
}
