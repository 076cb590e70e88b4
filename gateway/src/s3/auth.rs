//! Who may sign requests. Until there are users in the ledger: one key pair, given at start.

/// One access key and its secret.
pub struct StaticKeys {
    /// The access key.
    pub access_key: String,
    /// Its secret.
    pub secret_key: String,
}
