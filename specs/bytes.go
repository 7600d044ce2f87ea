package specs

import (
	"encoding/hex"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Bytes stand in a dialect file as hexadecimal digits.
type Bytes []byte

// UnmarshalYAML reads them. Its error quotes nothing: the file may be another than was meant.
func (b *Bytes) UnmarshalYAML(node *yaml.Node) error {
	var text string
	if node.Kind == yaml.ScalarNode {
		text = node.Value
	}
	raw, err := hex.DecodeString(text)
	if err != nil || node.Kind != yaml.ScalarNode {
		return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: is not bytes in hexadecimal digits", node.Line)}}
	}
	*b = raw
	return nil
}

// MarshalYAML writes them as they are read.
func (b Bytes) MarshalYAML() (any, error) { return strings.ToUpper(hex.EncodeToString(b)), nil }

// oneOf lists what a key may be.
func oneOf[T ~string](values []T) string {
	texts := make([]string, len(values))
	for i, v := range values {
		texts[i] = string(v)
	}
	return strings.Join(texts, ", ")
}
