//! The lease that keeps what an import has moved so far: one for each bundle, with a fixed id, found again after a
//! crash.
//!
//! containerd cannot extend a lease, so one that has lived for half its time is replaced: a new one is made, given what
//! the old one holds, and only then is the old one deleted. Nothing is unprotected in between.

use std::collections::BTreeMap;

use containerd::{Client, Created, Error, Lease as LeaseInfo};
use jiff::{SignedDuration, Timestamp};

use crate::labels::LEASE_MARK;

/// How long a lease lives: longer than the slowest import, short enough that nothing leaks for ever.
const LIFETIME: SignedDuration = SignedDuration::from_hours(24);
/// Every lease of ours starts with this.
pub const PREFIX: &str = "airgapd-";

/// A lease in containerd.
#[derive(Clone, Debug)]
pub struct Lease {
    base: String,
    id: String,
    expires: Timestamp,
}

impl Lease {
    /// Finds the lease of a bundle again, or makes one. `mark` says in containerd whose it is.
    ///
    /// Safe to cancel: the id is fixed, so the next call finds what this one made.
    ///
    /// # Errors
    ///
    /// What the client reports, unchanged.
    pub async fn acquire(client: &Client, bundle_id: &str, mark: &str) -> Result<Lease, Error> {
        let base = format!("{PREFIX}{bundle_id}");
        let mut found: Vec<LeaseInfo> = client.leases().await?;
        found.retain(|lease| is_of(&lease.id, &base));
        found.sort_by_key(expiry);
        match found.pop() {
            Some(last) => {
                let mut lease = Lease {
                    base,
                    expires: expiry(&last),
                    id: last.id,
                };
                lease.replace_if_old(client, mark).await?;
                for stale in found {
                    client.delete_lease(&stale.id, false).await?;
                }
                Ok(lease)
            }
            None => make(client, base.clone(), base, mark).await,
        }
    }

    /// Its id, as `containerd-lease` wants it.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Replaces the lease when half its life is over. Safe to cancel: until the new one holds everything, the old one
    /// stays.
    ///
    /// # Errors
    ///
    /// What the client reports, unchanged.
    pub async fn replace_if_old(&mut self, client: &Client, mark: &str) -> Result<(), Error> {
        if self.expires.duration_since(Timestamp::now()) > LIFETIME / 2 {
            return Ok(());
        }
        let id = format!("{}-{}", self.base, Timestamp::now().as_second());
        let fresh = make(client, self.base.clone(), id, mark).await?;
        for resource in client.lease_resources(&self.id).await? {
            client.add_to_lease(&fresh.id, &resource).await?;
        }
        client.delete_lease(&self.id, false).await?;
        *self = fresh;
        Ok(())
    }

    /// Gives the lease back. containerd collects what nothing else refers to.
    ///
    /// # Errors
    ///
    /// What the client reports, unchanged.
    pub async fn release(self, client: &Client) -> Result<(), Error> {
        client.delete_lease(&self.id, false).await.map(|_| ())
    }
}

async fn make(client: &Client, base: String, id: String, mark: &str) -> Result<Lease, Error> {
    let expires = Timestamp::now() + LIFETIME;
    let labels = BTreeMap::from([(LEASE_MARK.to_owned(), mark.to_owned())]);
    match client.create_lease(&id, expires, &labels).await? {
        // Somebody imports the same bundle at the same time: the lease serves both.
        Created::New | Created::Existed => Ok(Lease { base, id, expires }),
    }
}

fn is_of(id: &str, base: &str) -> bool {
    id.strip_prefix(base)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// A lease without a readable expiry never ends; ours always have one.
fn expiry(lease: &LeaseInfo) -> Timestamp {
    lease.expires.unwrap_or(Timestamp::MAX)
}
