//! What a part is.

/// The type of what came alone, without MIME.
pub const UNNAMED: &str = "text/x-not-multipart";

/// What a part is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// `#!`
    Script,
    /// By its MIME type only: a script of every boot.
    ScriptPerBoot,
    /// The same, once an instance.
    ScriptPerInstance,
    /// The same, once.
    ScriptPerOnce,
    /// `#cloud-config`
    Config,
    /// `#cloud-config-jsonp`
    Patch,
    /// `#cloud-config-archive`
    Archive,
    /// `#cloud-boothook`
    Boothook,
    /// `#include`, `#include-once`
    Include,
    /// `## template: jinja`
    Jinja,
    /// `#part-handler`
    PartHandler,
    /// Anything else, by its type.
    Other(String),
}

/// What user-data begin with; the longer of two that begin alike first.
const HEADERS: [(&str, Kind); 10] = [
    ("#cloud-config-archive", Kind::Archive),
    ("#cloud-config-jsonp", Kind::Patch),
    ("## template: jinja", Kind::Jinja),
    ("#cloud-boothook", Kind::Boothook),
    ("#include-once", Kind::Include),
    ("#cloud-config", Kind::Config),
    ("#part-handler", Kind::PartHandler),
    ("#include", Kind::Include),
    ("##template: jinja", Kind::Jinja),
    ("#!", Kind::Script),
];

const TYPES: [(&str, Kind); 12] = [
    ("text/x-shellscript", Kind::Script),
    ("text/x-shellscript-per-boot", Kind::ScriptPerBoot),
    ("text/x-shellscript-per-instance", Kind::ScriptPerInstance),
    ("text/x-shellscript-per-once", Kind::ScriptPerOnce),
    ("text/cloud-config", Kind::Config),
    ("text/cloud-config-jsonp", Kind::Patch),
    ("text/cloud-config-archive", Kind::Archive),
    ("text/cloud-boothook", Kind::Boothook),
    ("text/x-include-url", Kind::Include),
    ("text/x-include-once-url", Kind::Include),
    ("text/jinja2", Kind::Jinja),
    ("text/part-handler", Kind::PartHandler),
];

impl Kind {
    /// By the type, or where that says too little by what the content begins with.
    pub fn of(kind: &str, content: &[u8]) -> Self {
        let sniffed = ["text/plain", UNNAMED, "text/x-shellscript"].contains(&kind);
        let found = sniffed.then(|| Self::by_header(content)).flatten();
        found.unwrap_or_else(|| {
            let known = TYPES.iter().find(|(name, _)| *name == kind);
            known.map_or_else(|| Self::Other(kind.to_owned()), |(_, kind)| kind.clone())
        })
    }

    /// By what the content begins with.
    pub fn by_header(content: &[u8]) -> Option<Self> {
        let start = content.trim_ascii_start();
        let header = |text: &str| {
            start
                .get(..text.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(text.as_bytes()))
        };
        let found = HEADERS.iter().find(|(text, _)| header(text));
        found.map(|(_, kind)| kind.clone())
    }
}

/// Whether a type says that the part is packed.
pub fn is_zipped(kind: &str) -> bool {
    let Some(kind) = kind.strip_prefix("application/") else {
        return false;
    };
    let kind = kind.strip_prefix("x-").unwrap_or(kind);
    let kinds = [
        "gzip",
        "gzip-compressed",
        "gzipped",
        "compress",
        "compressed",
        "gunzip",
    ];
    kinds.contains(&kind)
}
