//! Just enough XML to read what S3 answers: the texts of an element, in document order.

/// The texts of all elements of this name.
pub fn texts(document: &str, element: &str) -> Vec<String> {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    let after_open = document.split(&open).skip(1);
    after_open
        .filter_map(|rest| rest.split_once(&close))
        .map(|(text, _)| unescape(text))
        .collect()
}

/// The text of the first element of this name.
pub fn text(document: &str, element: &str) -> Option<String> {
    texts(document, element).into_iter().next()
}

/// A text as element content.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

fn unescape(text: &str) -> String {
    let entities = [
        ("&quot;", "\""),
        ("&#34;", "\""),
        ("&apos;", "'"),
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&amp;", "&"),
    ];
    entities
        .iter()
        .fold(text.to_owned(), |text, (entity, character)| {
            text.replace(entity, character)
        })
}
