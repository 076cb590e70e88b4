//! Why a request goes no further: S3's code, its status, words, and what else its document says.

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use s3s::{Body, HttpResponse};

/// A request that was refused before any operation ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// S3's code.
    pub code: &'static str,
    /// Its status.
    pub status: StatusCode,
    /// For people.
    pub message: String,
    /// Further elements of the document.
    pub details: Vec<(&'static str, String)>,
}

/// Short names for the refusals that several stages have.
impl Refusal {
    /// With this code and status.
    pub fn new(code: &'static str, status: StatusCode, message: impl Into<String>) -> Refusal {
        Refusal {
            code,
            status,
            message: message.into(),
            details: Vec::new(),
        }
    }

    /// Nobody may do that, or not this caller.
    pub fn access_denied(message: impl Into<String>) -> Refusal {
        Refusal::new("AccessDenied", StatusCode::FORBIDDEN, message)
    }

    /// S3 has it, or may have it, and this server does not.
    pub fn not_implemented(message: impl Into<String>) -> Refusal {
        Refusal::new("NotImplemented", StatusCode::NOT_IMPLEMENTED, message)
    }

    /// A value that makes no sense.
    pub fn invalid_argument(message: impl Into<String>) -> Refusal {
        Refusal::new("InvalidArgument", StatusCode::BAD_REQUEST, message)
    }

    /// A request that makes no sense.
    pub fn invalid_request(message: impl Into<String>) -> Refusal {
        Refusal::new("InvalidRequest", StatusCode::BAD_REQUEST, message)
    }

    /// A target that is no path of a bucket or object.
    pub fn invalid_uri(message: impl Into<String>) -> Refusal {
        Refusal::new("InvalidURI", StatusCode::BAD_REQUEST, message)
    }

    /// With a further element of the document.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Refusal {
        self.details.push((name, value.into()));
        self
    }

    /// The answer to a request of this method for this resource.
    pub fn answer(&self, method: &Method, resource: &str, request_id: &str) -> HttpResponse {
        let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error>");
        element(&mut xml, "Code", self.code);
        element(&mut xml, "Message", &self.message);
        for (name, value) in &self.details {
            element(&mut xml, name, value);
        }
        element(&mut xml, "Resource", resource);
        element(&mut xml, "RequestId", request_id);
        xml.push_str("</Error>");
        let body = match *method {
            Method::HEAD => Body::empty(),
            _ => Body::from(Bytes::from(xml)),
        };
        let mut response = HttpResponse::new(body);
        *response.status_mut() = self.status;
        let xml = HeaderValue::from_static("application/xml");
        response.headers_mut().insert(header::CONTENT_TYPE, xml);
        response
    }
}

/// Adds `<name>text</name>`.
pub fn element(xml: &mut String, name: &str, text: &str) {
    xml.push('<');
    xml.push_str(name);
    xml.push('>');
    escape(xml, text);
    xml.push_str("</");
    xml.push_str(name);
    xml.push('>');
}

/// Adds text, with a reference for what XML does not take as it is. What XML 1.0 cannot hold at all is a replacement character.
fn escape(xml: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '<' => xml.push_str("&lt;"),
            '>' => xml.push_str("&gt;"),
            '&' => xml.push_str("&amp;"),
            '"' => xml.push_str("&quot;"),
            '\r' => xml.push_str("&#13;"),
            '\t' | '\n' => xml.push(c),
            '\u{0}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => xml.push(char::REPLACEMENT_CHARACTER),
            c => xml.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_says_what_and_of_what_and_is_xml_whatever_is_in_it() {
        let refusal = Refusal::access_denied("no <b> & \u{1}\r").with("Region", "us-east-1");
        let answer = refusal.answer(&Method::GET, "/a\"b", "7");
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
        let body = answer.body().bytes().expect("a document");
        let text = String::from_utf8(body.to_vec()).expect("text");
        assert!(text.ends_with(
            "<Error><Code>AccessDenied</Code><Message>no &lt;b&gt; &amp; \u{fffd}&#13;</Message>\
             <Region>us-east-1</Region><Resource>/a&quot;b</Resource><RequestId>7</RequestId></Error>"
        ));
        let head = refusal.answer(&Method::HEAD, "/", "7");
        assert!(head.body().bytes().is_none_or(|bytes| bytes.is_empty()));
    }
}
