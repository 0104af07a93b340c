"""Types of the JSON that the machines hand each other, for type checkers: at run time they are plain dictionaries."""

from typing import TYPE_CHECKING, Any, Dict

if TYPE_CHECKING:
    from typing import List, Optional, TypedDict  # novm

    class Figure(TypedDict, total=False):
        """A measured figure with its unit, or value None with the reason. Other keys say how it was taken."""

        value: Optional[float]
        unit: Optional[str]
        reason: str

    class _Gate(TypedDict):
        name: str
        passed: bool
        measured: float
        limit: float
        detail: str

    class Gate(_Gate, total=False):
        """One proof that the exported graphs are right. graphs: what the compile gate measured of each."""

        graphs: Dict[str, Dict[str, Any]]

    class _Graph(TypedDict, total=False):
        fp32_nodes: List[str]

    class Graph(_Graph):
        """An ONNX file of a bundle. precision: fp32, or the lowest of its parts. fp32_nodes: what stays fp32 in it, beside softmax and norms."""

        file: str
        opset: int
        precision: str
        inputs: List[str]
        outputs: List[str]

    class Margin(TypedDict, total=False):
        """What the encoder must hear after a clip's end, as found on n_clips clips: the rest of the window is not computed.

        margin_s: None where every shorter window cost accuracy (why: reason). least_s: the shortest time that any of the
        clips was heard for. n_shipped: how many of them are in the bundle's own eval set. tried: rows of margin_s (None: the whole window), error rate and its kind, n_incomplete, heard_s.
        """

        margin_s: Optional[float]
        least_s: float
        reason: str
        n_clips: int
        n_shipped: int
        tried: List[Dict[str, Any]]

    class Audio(TypedDict, total=False):
        """What the model hears: windows_s are the lengths of audio, in s, that its encoder may see.

        cut_in_training: it learned from audio without silence, which the runner does not cut. tuned_windows_s: those of
        its training, where export was asked for others. margin: how far a window may follow the clip (see Margin).
        """

        sample_rate_hz: int
        windows_s: List[float]
        cut_in_training: bool
        tuned_windows_s: List[float]
        margin: Margin

    class Model(TypedDict, total=False):
        """Sizes of the network; all but vocab_size are of an encoder-decoder."""

        family: str
        base_model: str
        vocab_size: int
        n_layers: int
        n_heads: int
        head_dim: int
        n_mels: int
        max_target_positions: int

    class Features(TypedDict, total=False):
        """kind log-mel: n_fft, hop_length, n_mels, mel_filters; kind waveform: normalise."""

        kind: str
        n_fft: int
        hop_length: int
        n_mels: int
        mel_filters: str
        normalise: bool

    class Decoder(TypedDict, total=False):
        """Decoding rules. kind greedy: prompt_ids to max_new_tokens; kind ctc: blank_id to conv_stride.

        kind greedy-buffered: as greedy, and n_candidates, if the graph gives the logits of so many tokens, not of all.
        """

        kind: str
        detokenizer: str
        language: Optional[str]
        task: Optional[str]
        prompt_ids: List[int]
        eos_ids: List[int]
        suppress_ids: List[int]
        begin_suppress_ids: List[int]
        max_new_tokens: Dict[str, int]
        n_candidates: Optional[int]
        blank_id: int
        word_delimiter: str
        uses_mask: bool
        conv_kernel: List[int]
        conv_stride: List[int]

    class TriedMix(TypedDict, total=False):
        """A mix of precisions: its int8 and fp16 parts, and what it costs (see Precision). ms_per_clip: None where it runs on another machine."""

        int8: List[str]
        fp16: List[str]
        bf16: List[str]
        bytes: int
        wer: float
        increase: float
        low: float
        high: float
        n_collapsed: int
        n_silent: int
        n_endless: int
        ms_per_clip: Optional[float]
        refused: Optional[str]

    class Precision(TypedDict, total=False):
        """Which parts of the graphs ("graph/part") are int8, fp16, bf16 and fp32, as found on n_clips clips with n_words words.

        reason: why none was looked for. max_increase: points of the error rate that a mix may cost. tried: mixes, fp32 first, with
        bytes of the graphs and the increase over fp32 (95 % interval of a paired bootstrap over clips). sensitivity: KL divergence of
        the next token, in nats, with one part alone in the lower precision. vocabulary: see n_candidates of the decoder. too_large:
        magnitudes that fp16 does not hold with room to spare, of tensors and constants that are fp32 for it.
        """

        int8: List[str]
        fp16: List[str]
        bf16: List[str]
        fp32: List[str]
        too_large: Dict[str, float]
        reason: str
        max_increase: Optional[float]
        n_clips: int
        n_words: int
        tried: List[TriedMix]
        sensitivity: Dict[str, Optional[float]]
        vocabulary: Dict[str, int]

    class EvalSet(TypedDict):
        """The clips that travel with a bundle."""

        manifest: str
        n_clips: int

    class _Manifest(TypedDict, total=False):
        precision: Precision

    class Manifest(_Manifest):
        """manifest.json of a bundle, schema edgeqlora.bundle/2. precision: of bundles whose precision was searched for."""

        schema: str
        name: str
        created_utc: str
        versions: Dict[str, str]
        model: Model
        audio: Audio
        features: Features
        decoder: Decoder
        graphs: Dict[str, Graph]
        profile: Dict[str, Any]
        engine_request: Optional[Dict[str, Any]]
        gates: List[Gate]
        parents: Dict[str, Any]
        normaliser: str
        eval: Optional[EvalSet]
        files: Dict[str, Dict[str, Any]]
else:
    Figure = Gate = Graph = Audio = Margin = Model = Features = Decoder = Precision = TriedMix = EvalSet = Manifest = (
        dict
    )
