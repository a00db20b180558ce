//! The Helm chart's templates, made from the kustomize base line by line, so that each keeps its reasons.
//!
//! Marks in the base say what a value is about; kubectl reads them as comments:
//!
//! ```text
//! key: value # helm: TEXT           the value becomes TEXT
//! - value # helm: TEXT              the same for an element of a list
//! key: # helm-yaml: .Values.x       what is below the key comes from the values
//! # helm-if: .Values.x              as far as `# helm-end` only if
//! ```

use anyhow::{Result, bail};

/// The namespace that the base is written for; a chart's is the release's.
const NAMESPACE: &str = "mesh-agent-system";

/// A file of the base as a template; `condition` is what the whole file depends on.
///
/// # Errors
/// When a mark is not understood.
pub fn template(text: &str, condition: Option<&str>) -> Result<String> {
    let mut lines = Vec::new();
    let mut below: Option<usize> = None;
    lines.extend(condition.map(|condition| format!("{{{{- if {condition} }}}}")));
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        // A list may stand at its key's own depth.
        if let Some(depth) = below {
            let is_element = indent == depth && line.trim_start().starts_with("- ");
            if indent > depth || is_element {
                continue;
            }
            below = None;
        }
        if let Some((key, path)) = line.split_once(" # helm-yaml: ") {
            lines.push(key.to_owned());
            lines.push(format!("{}{{{{- toYaml {path} | nindent {} }}}}", " ".repeat(indent + 2), indent + 2));
            below = Some(indent);
        } else {
            lines.push(plain(line)?);
        }
    }
    lines.extend(condition.map(|_| "{{- end }}".to_owned()));
    lines.push(String::new());
    Ok(lines.join("\n"))
}

fn plain(line: &str) -> Result<String> {
    if let Some(condition) = line.trim_start().strip_prefix("# helm-if: ") {
        return Ok(format!("{{{{- if {condition} }}}}"));
    }
    if line.trim_start() == "# helm-end" {
        return Ok("{{- end }}".to_owned());
    }
    let Some((before, text)) = line.split_once(" # helm: ") else {
        if line.contains("# helm") {
            bail!("`{line}`: a mark that is none");
        }
        // Braces of somebody else's templates.
        if line.contains("{{") {
            let marked = line.replace("{{", "\u{1}").replace("}}", "\u{2}");
            return Ok(marked.replace('\u{1}', r#"{{ "{{" }}"#).replace('\u{2}', r#"{{ "}}" }}"#));
        }
        // What is for readers stays as it is.
        let is_comment = line.trim_start().starts_with('#');
        return Ok(if is_comment { line.to_owned() } else { line.replace(NAMESPACE, "{{ .Release.Namespace }}") });
    };
    let start = before.len() - before.trim_start().len();
    let head = match (before.find(": "), before.trim_start().strip_prefix("- ")) {
        // `- --option=value`, as opposed to `- name: value`.
        (_, Some(element)) if element.starts_with("--") => start + 2,
        (Some(at), _) => at + 2,
        (None, Some(_)) => start + 2,
        (None, None) => bail!("`{line}`: neither a field nor an element"),
    };
    Ok(format!("{}{text}", before.get(..head).unwrap_or(before)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_become_templates_and_the_rest_stays() {
        let base = "# in mesh-agent-system\nmetadata:\n  namespace: mesh-agent-system\nspec:\n  \
                    replicas: 2 # helm: {{ .Values.replicas }}\n  args:\n  - run\n  \
                    - --ca=grpc://a.mesh-agent-system:1 # helm: --ca={{ .Values.ca }}\n  \
                    # helm-if: .Values.x\n  - y\n  # helm-end\n  \
                    tolerations: # helm-yaml: .Values.tolerations\n  - operator: Exists\n  \
                    resources: # helm-yaml: .Values.resources\n    limits: {cpu: 1}\n  end: true\n";
        let expected = "{{- if .Values.on }}\n# in mesh-agent-system\nmetadata:\n  \
                        namespace: {{ .Release.Namespace }}\nspec:\n  replicas: {{ .Values.replicas }}\n  args:\n  \
                        - run\n  - --ca={{ .Values.ca }}\n{{- if .Values.x }}\n  - y\n{{- end }}\n  \
                        tolerations:\n    {{- toYaml .Values.tolerations | nindent 4 }}\n  \
                        resources:\n    {{- toYaml .Values.resources | nindent 4 }}\n  end: true\n{{- end }}\n";
        assert_eq!(template(base, Some(".Values.on")).unwrap(), expected);
    }

    #[test]
    fn a_mark_that_is_none_is_refused() {
        assert!(template("a: b # helm {{ }}\n", None).is_err());
        assert!(template("a # helm: {{ }}\n", None).is_err());
    }
}
