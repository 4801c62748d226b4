//! `airgapd inventory`: lists the images and blobs of this node, for `bundle-artifacts --have` on
//! the connected side.

use std::io::Write as _;

use anyhow::Context as _;
use bundle::write::Output;
use bundle::{BlobRef, Inventory, InventoryImage};

use super::export::stock::Stock;
use super::{Call, Exit, Refusal};
use crate::output;

/// Lists the image records and the blobs that they keep. A blob that no record keeps does not
/// count, since containerd may remove it before a delta arrives.
pub(super) async fn run(call: &Call) -> Result<Exit, Refusal> {
    let runtime = call.connect(&call.node()?).await?;
    let inventory = inventory(&Stock::of(&runtime).await?);
    match call.file.as_ref().filter(|file| file.as_os_str() != "-") {
        None => output::json(&inventory)?,
        Some(file) => {
            let bytes = output::document(&inventory)?;
            let place = || file.display().to_string();
            let mut output = Output::create(file).with_context(place)?;
            output.write_all(&bytes).with_context(place)?;
            output.commit().with_context(place)?;
        }
    }
    Ok(Exit::Done)
}

fn inventory(stock: &Stock) -> Inventory {
    let blobs = stock.kept().into_iter().map(|blob| BlobRef {
        digest: blob.digest.clone(),
        size: blob.size,
    });
    let images = stock.named().map(|record| InventoryImage {
        name: record.name.clone(),
        digest: record.target.digest().clone(),
    });
    let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Inventory::new(node, blobs, images.collect())
}
