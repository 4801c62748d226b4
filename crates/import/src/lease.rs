//! The lease that protects the blobs of an unfinished import. Each bundle has one, with a fixed id,
//! so the next run finds it after a crash.
//!
//! containerd cannot extend a lease, so a lease is replaced after half its life. The new lease
//! first takes over the old lease's resources, and only then is the old lease deleted. The
//! resources are never unprotected.

use std::collections::{BTreeMap, HashSet};

use basics::digest;
use containerd::{Client, Created, Error, Lease as LeaseInfo, Resource};
use jiff::{SignedDuration, Timestamp};
use oci_spec::image::Digest;

use crate::labels::{LEASE_MARK, LEASE_OF_RECEIPT, bundle_id};

/// Life of a lease. It is longer than the slowest import, and short enough that no lease leaks for
/// ever.
const LIFETIME: SignedDuration = SignedDuration::from_hours(24);
/// Prefix of airgapd's leases.
pub const PREFIX: &str = "airgapd-";
/// Prefix of the leases of receipts.
pub const RECEIPT_PREFIX: &str = "airgapd-receipt-";

/// Returns the id of the lasting lease of a receipt, from the receipt's path and content digest. A
/// receipt with other content has another lease, so no blob of the former one stays. Leases of
/// bundles have other ids, which go on with hexadecimal digits.
#[must_use]
pub fn of_receipt(path: &str, content: &Digest) -> String {
    let content = digest::short(content.as_ref().as_bytes());
    format!("{}{content}", of_receipts_at(path))
}

/// Returns the start of the ids of the leases of all receipts that have had this path.
#[must_use]
pub fn of_receipts_at(path: &str) -> String {
    format!("{RECEIPT_PREFIX}{}-", bundle_id(path))
}

/// Puts blobs under the lasting lease of a receipt, and makes the lease if it does not exist. The
/// blobs outlive the records that need them, so that a removed record comes back without a byte.
///
/// Safe to cancel and to repeat: the id is fixed, and a blob is added once.
///
/// # Errors
///
/// Returns the client's error, unchanged.
pub async fn hold_for_receipt(
    client: &Client,
    (path, content): (&str, &Digest),
    blobs: impl IntoIterator<Item = Digest>,
) -> Result<(), Error> {
    let id = of_receipt(path, content);
    let mark = BTreeMap::from([(LEASE_MARK.to_owned(), format!("{LEASE_OF_RECEIPT}{path}"))]);
    let held: HashSet<Resource> = match client.create_lasting_lease(&id, &mark).await? {
        Created::New => HashSet::new(),
        Created::Existed => client.lease_resources(&id).await?.into_iter().collect(),
    };
    for digest in blobs {
        let blob = Resource::Blob(digest);
        if !held.contains(&blob) {
            client.add_to_lease(&id, &blob).await?;
        }
    }
    Ok(())
}

/// A lease in containerd.
#[derive(Clone, Debug)]
pub struct Lease {
    base: String,
    id: String,
    expires: Timestamp,
    created: Option<Timestamp>,
}

impl Lease {
    /// Finds the lease of a bundle again, or makes a lease. `mark` names its owner in containerd.
    ///
    /// Safe to cancel: the id is fixed, so the next call finds the same lease.
    ///
    /// # Errors
    ///
    /// Returns the client's error, unchanged.
    pub async fn acquire(client: &Client, bundle_id: &str, mark: &str) -> Result<Lease, Error> {
        let base = base_of(bundle_id);
        let mut found = of_bundle(client, &base).await?;
        let Some(last) = found.pop() else {
            return make(client, base.clone(), base, mark).await;
        };
        let mut lease = Lease {
            base,
            expires: expiry(&last),
            created: last.created_at,
            id: last.id,
        };
        // A replacement was interrupted. The older lease may hold resources that the younger does
        // not hold yet.
        for older in found {
            lease.take_over(client, &older.id).await?;
        }
        lease.replace_if_old(client, mark).await?;
        Ok(lease)
    }

    /// Returns the lease's id, as the header `containerd-lease` needs it.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Replaces the lease if half its life is over. Safe to cancel: the old lease stays until the
    /// new one holds everything.
    ///
    /// # Errors
    ///
    /// Returns the client's error, unchanged.
    pub async fn replace_if_old(&mut self, client: &Client, mark: &str) -> Result<(), Error> {
        if self.expires.duration_since(Timestamp::now()) > LIFETIME / 2 {
            return Ok(());
        }
        let id = format!("{}-{}", self.base, Timestamp::now().as_second());
        let fresh = make(client, self.base.clone(), id, mark).await?;
        fresh.take_over(client, &self.id).await?;
        *self = fresh;
        Ok(())
    }

    /// Returns true if the lease exists and was never deleted meanwhile. Then its resources exist,
    /// too. This only reads.
    ///
    /// # Errors
    ///
    /// Returns the client's error, unchanged.
    pub async fn is_alive(&self, client: &Client) -> Result<bool, Error> {
        let leases = client.leases_beginning(&self.id).await?;
        let found = leases.iter().find(|lease| lease.id == self.id);
        Ok(found.is_some_and(|lease| lease.created_at == self.created))
    }

    /// Takes over the resources of another lease, and then deletes that lease.
    async fn take_over(&self, client: &Client, other: &str) -> Result<(), Error> {
        for resource in client.lease_resources(other).await? {
            client.add_to_lease(&self.id, &resource).await?;
        }
        client.delete_lease(other, false).await.map(|_| ())
    }
}

/// Deletes all leases of a bundle, of this run or of an interrupted run. containerd then collects
/// everything that is no longer referred to.
///
/// # Errors
///
/// Returns the client's error, unchanged, after a second attempt.
pub async fn give_back(client: &Client, bundle_id: &str) -> Result<(), Error> {
    let give_back = async || {
        for lease in of_bundle(client, &base_of(bundle_id)).await? {
            client.delete_lease(&lease.id, false).await?;
        }
        Ok(())
    };
    match give_back().await {
        Ok(()) => Ok(()),
        // If everything else is done, no later run comes back for this lease.
        Err(_) => give_back().await,
    }
}

/// Returns the id of a bundle's first lease. Ids of later leases begin with it.
#[must_use]
pub fn base_of(bundle_id: &str) -> String {
    format!("{PREFIX}{bundle_id}")
}

/// Returns the leases of a bundle, sorted by expiry.
async fn of_bundle(client: &Client, base: &str) -> Result<Vec<LeaseInfo>, Error> {
    let mut found = client.leases_beginning(base).await?;
    found.retain(|lease| is_of(&lease.id, base));
    found.sort_by_key(expiry);
    Ok(found)
}

async fn make(client: &Client, base: String, id: String, mark: &str) -> Result<Lease, Error> {
    let expires = Timestamp::now() + LIFETIME;
    let labels = BTreeMap::from([(LEASE_MARK.to_owned(), mark.to_owned())]);
    match client.create_lease(&id, expires, &labels).await? {
        // Another process imports the same bundle at the same time. The lease serves both.
        Created::New | Created::Existed => {}
    }
    let leases = client.leases_beginning(&id).await?;
    let made = leases.into_iter().find(|lease| lease.id == id);
    Ok(Lease {
        base,
        id,
        expires,
        // If the lease is already gone, later checks do not find it alive.
        created: made.and_then(|lease| lease.created_at),
    })
}

fn is_of(id: &str, base: &str) -> bool {
    id.strip_prefix(base)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// Returns the expiry of a lease. A lease without a readable expiry never ends. airgapd's leases
/// always have an expiry.
fn expiry(lease: &LeaseInfo) -> Timestamp {
    lease.expires.unwrap_or(Timestamp::MAX)
}
