//! The lease that keeps what an import has moved so far: one for each bundle, with a fixed id,
//! found again after a crash.
//!
//! containerd cannot extend a lease, so one that has lived for half its time is replaced: a new one
//! is made, given what the old one holds, and only then is the old one deleted. Nothing is
//! unprotected in between.

use std::collections::BTreeMap;

use containerd::{Client, Created, Error, Lease as LeaseInfo};
use jiff::{SignedDuration, Timestamp};

use crate::labels::LEASE_MARK;

/// How long a lease lives: longer than the slowest import, short enough that nothing leaks for
/// ever.
const LIFETIME: SignedDuration = SignedDuration::from_hours(24);
/// Every lease of ours starts with this.
pub const PREFIX: &str = "airgapd-";

/// A lease in containerd.
#[derive(Clone, Debug)]
pub struct Lease {
    base: String,
    id: String,
    expires: Timestamp,
    created: Option<Timestamp>,
}

impl Lease {
    /// Finds the lease of a bundle again, or makes one. `mark` says in containerd whose it is.
    ///
    /// Safe to cancel: the id is fixed, so the next call finds what this one made.
    ///
    /// # Errors
    ///
    /// The error of the client, unchanged.
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
        // A replacement that was interrupted: the older one may hold what the younger does not hold
        // yet.
        for older in found {
            lease.take_over(client, &older.id).await?;
        }
        lease.replace_if_old(client, mark).await?;
        Ok(lease)
    }

    /// Its id, as `containerd-lease` wants it.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Replaces the lease when half its life is over. Safe to cancel: until the new one holds
    /// everything, the old one stays.
    ///
    /// # Errors
    ///
    /// The error of the client, unchanged.
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

    /// Whether it is still there, and has been all the time: then so is everything that it holds.
    /// Only reads.
    ///
    /// # Errors
    ///
    /// The error of the client, unchanged.
    pub async fn is_alive(&self, client: &Client) -> Result<bool, Error> {
        let leases = client.leases_beginning(&self.id).await?;
        let found = leases.iter().find(|lease| lease.id == self.id);
        Ok(found.is_some_and(|lease| lease.created_at == self.created))
    }

    /// Takes everything over that another lease holds, and then gives that one back.
    async fn take_over(&self, client: &Client, other: &str) -> Result<(), Error> {
        for resource in client.lease_resources(other).await? {
            client.add_to_lease(&self.id, &resource).await?;
        }
        client.delete_lease(other, false).await.map(|_| ())
    }
}

/// Gives back whatever leases a bundle has: of this run, or of one that was interrupted. containerd
/// then collects what nothing else refers to.
///
/// # Errors
///
/// The error of the client, unchanged, after a second try.
pub(crate) async fn give_back(client: &Client, bundle_id: &str) -> Result<(), Error> {
    let give_back = async || {
        for lease in of_bundle(client, &base_of(bundle_id)).await? {
            client.delete_lease(&lease.id, false).await?;
        }
        Ok(())
    };
    match give_back().await {
        Ok(()) => Ok(()),
        // Nobody comes back for this lease if all else is done.
        Err(_) => give_back().await,
    }
}

fn base_of(bundle_id: &str) -> String {
    format!("{PREFIX}{bundle_id}")
}

/// The leases of a bundle, the one that lives longest last.
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
        // Somebody imports the same bundle at the same time: the lease serves both.
        Created::New | Created::Existed => {}
    }
    let leases = client.leases_beginning(&id).await?;
    let made = leases.into_iter().find(|lease| lease.id == id);
    Ok(Lease {
        base,
        id,
        expires,
        // One that is gone already is not found alive later.
        created: made.and_then(|lease| lease.created_at),
    })
}

fn is_of(id: &str, base: &str) -> bool {
    id.strip_prefix(base)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// A lease without a readable expiry never ends; ours always have one.
fn expiry(lease: &LeaseInfo) -> Timestamp {
    lease.expires.unwrap_or(Timestamp::MAX)
}
