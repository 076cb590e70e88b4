//! The fields that many of s3s's types share, filled in one place. s3s generates a flat type per operation, so what is
//! one thing here (an object's headers, a checksum) is five or ten fields there; a macro is the only way to name them once.

/// The headers to keep with an object, from the input of PutObject, CopyObject or CreateMultipartUpload.
macro_rules! kept_headers {
    ($input:ident) => {
        crate::s3::convert::headers(
            $input.content_type,
            $input.content_encoding,
            $input.content_disposition,
            $input.content_language,
            $input.cache_control,
            $input.expires,
            $input.website_redirect_location,
            $input.metadata,
        )
    };
}

/// The checksum values of an input, in the order of `Algorithm::ALL`.
macro_rules! checksum_values {
    ($input:ident) => {
        [
            $input.checksum_crc32,
            $input.checksum_crc32c,
            $input.checksum_crc64nvme,
            $input.checksum_sha1,
            $input.checksum_sha256,
            $input.checksum_sha512,
            $input.checksum_md5,
            $input.checksum_xxhash64,
            $input.checksum_xxhash3,
            $input.checksum_xxhash128,
        ]
    };
}

/// An output with the checksum fields taken from `$sums`, the fields given, and defaults for the rest.
macro_rules! with_checksums {
    ($output:ident, $sums:ident, { $($field:ident: $value:expr),* $(,)? }) => {{
        // Not every output has more fields than are named here.
        #[allow(clippy::needless_update)]
        let output = $output {
            checksum_crc32: $sums.crc32,
            checksum_crc32c: $sums.crc32c,
            checksum_crc64nvme: $sums.crc64nvme,
            checksum_sha1: $sums.sha1,
            checksum_sha256: $sums.sha256,
            checksum_sha512: $sums.sha512,
            checksum_md5: $sums.md5,
            checksum_xxhash64: $sums.xxhash64,
            checksum_xxhash3: $sums.xxhash3,
            checksum_xxhash128: $sums.xxhash128,
            $($field: $value,)*
            ..Default::default()
        };
        output
    }};
}

/// The fields that GET and HEAD answer alike.
macro_rules! found_object {
    ($output:ident, $found:ident, $wanted:ident, $checksum_mode:expr, { $($field:ident: $value:expr),* $(,)? }) => {{
        let headers = $found.row.headers.clone().unwrap_or_default();
        let with_checksum = $checksum_mode.is_some() && !partial(&$found);
        let sums = checksum_fields($found.row.checksum.as_ref().filter(|_| with_checksum));
        with_checksums!($output, sums, {
            checksum_type: sums.kind,
            accept_ranges: Some("bytes".into()),
            content_length: Some(($found.range.end - $found.range.start) as i64),
            content_range: content_range(&$found),
            parts_count: parts_count(&$found.row, $wanted),
            e_tag: Some(etag(&$found.row.etag)),
            last_modified: Some(timestamp($found.row.modified_ms)),
            metadata: convert::metadata(&headers),
            expires: convert::expires(&headers),
            cache_control: headers.cache_control,
            content_disposition: headers.content_disposition,
            content_encoding: headers.content_encoding,
            content_language: headers.content_language,
            content_type: Some(headers.content_type.unwrap_or_else(|| "binary/octet-stream".into())),
            website_redirect_location: headers.website_redirect_location,
            $($field: $value,)*
        })
    }};
}

pub(super) use {checksum_values, found_object, kept_headers, with_checksums};
