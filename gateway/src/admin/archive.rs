//! What operators see and want of the ledger's archive, and a backup of the ledger.

use super::server::{AdminError, Body};
use crate::archive::ArchiveStatus;
use crate::archive::backup::Backup;
use crate::archive::entry::Writer;
use crate::cluster::setup;
use crate::error::Error;
use crate::ledger::key;
use crate::ledger::model::GenerationRow;
use crate::server::Gateway;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;

/// How the archive is.
pub fn status(gateway: &Gateway) -> ArchiveStatus {
    gateway.objects.archive.status(gateway.objects.ledger.position())
}

/// Has a new snapshot made.
pub fn want_snapshot(gateway: &Gateway) -> ArchiveStatus {
    gateway.objects.archive.want_snapshot();
    status(gateway)
}

/// The bytes of a backup, as they are made.
pub async fn backup(gateway: &Gateway) -> Result<Body, AdminError> {
    let ledger = &gateway.objects.ledger;
    let found = setup::find(ledger).await.map_err(AdminError::from)?;
    let (cluster, _) = found.ok_or_else(|| AdminError::conflict("the ledger holds no cluster"))?;
    let generation = ledger
        .get::<GenerationRow>(key::generation())
        .await
        .map_err(Error::from)?;
    let writer = generation.map_or_else(Writer::default, |generation| Writer {
        number: generation.row.number,
        nonce: generation.row.nonce,
    });
    let clock = gateway.objects.clock.clone();
    let backup = Backup::begin(ledger.store().clone(), clock, cluster, writer).map_err(Error::from)?;
    let pieces = futures::stream::try_unfold(backup, |mut backup| async move {
        let next = backup.next().await.map_err(Error::from)?;
        Ok::<_, Error>(next.map(|bytes| (Frame::data(bytes), backup)))
    });
    Ok(StreamBody::new(pieces).boxed_unsync())
}
