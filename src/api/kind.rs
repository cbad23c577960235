//! Which wire API a request speaks, and the few facts that follow from it: does it generate, how do its errors look, how
//! does a good stream end. Source: the route lists of vLLM 0.32 (generate and pooling servers).

/// The API a JSON body belongs to, known from the path alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Api {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/chat/completions/batch`: a list of conversations in one body.
    ChatBatch,
    /// `/v1/completions`.
    Completions,
    /// `/v1/responses`.
    Responses,
    /// `/v1/messages` (Anthropic).
    Messages,
    /// `/v1/messages/count_tokens` (Anthropic).
    CountTokens,
    /// `/inference/v1/generate`: token ids in, token ids out.
    GenerateTokens,
    /// `/generative_scoring`.
    GenerativeScoring,
    /// `/invocations` (SageMaker): the body decides which other API it is.
    Invocations,
    /// `/v1/embeddings`.
    Embeddings,
    /// `/v2/embed` (Cohere).
    EmbedV2,
    /// `/pooling`.
    Pooling,
    /// `/classify`.
    Classify,
    /// `/score`, `/v1/score`.
    Score,
    /// `/rerank`, `/v1/rerank`, `/v2/rerank`.
    Rerank,
    /// `/tokenize`.
    Tokenize,
    /// `/detokenize`.
    Detokenize,
    /// `/v1/{chat/completions,completions,responses}/render` and `/derender`.
    Render,
    /// `/v1/messages/render`: as [`Api::Render`] for the Anthropic API.
    RenderMessages,
    /// `/v1/systemone`.
    SystemOne,
    /// `/v1/audio/transcriptions`: a form with a file in it.
    Transcriptions,
    /// `/v1/audio/translations`: likewise.
    Translations,
}

/// Shape of error bodies and error events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// `{"error":{"message","type","param","code"}}`.
    OpenAi,
    /// `{"type":"error","error":{"type","message"}}`.
    Anthropic,
}

/// What ends a stream that went well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DoneMark {
    /// `data: [DONE]`.
    Done,
    /// An event named `response.completed`, `response.incomplete` or `response.failed`.
    Response,
    /// An event named `message_stop`.
    MessageStop,
}

impl Api {
    /// Every API, for tables and metrics.
    pub const ALL: [Self; 22] = [
        Self::Chat,
        Self::ChatBatch,
        Self::Completions,
        Self::Responses,
        Self::Messages,
        Self::CountTokens,
        Self::GenerateTokens,
        Self::GenerativeScoring,
        Self::Invocations,
        Self::Embeddings,
        Self::EmbedV2,
        Self::Pooling,
        Self::Classify,
        Self::Score,
        Self::Rerank,
        Self::Tokenize,
        Self::Detokenize,
        Self::Render,
        Self::RenderMessages,
        Self::SystemOne,
        Self::Transcriptions,
        Self::Translations,
    ];

    /// Name for logs and metric labels; a closed list.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::ChatBatch => "chat_batch",
            Self::Completions => "completions",
            Self::Responses => "responses",
            Self::Messages => "messages",
            Self::CountTokens => "count_tokens",
            Self::GenerateTokens => "generate",
            Self::GenerativeScoring => "generative_scoring",
            Self::Invocations => "invocations",
            Self::Embeddings => "embeddings",
            Self::EmbedV2 => "embed_v2",
            Self::Pooling => "pooling",
            Self::Classify => "classify",
            Self::Score => "score",
            Self::Rerank => "rerank",
            Self::Tokenize => "tokenize",
            Self::Detokenize => "detokenize",
            Self::Render | Self::RenderMessages => "render",
            Self::SystemOne => "systemone",
            Self::Transcriptions => "transcriptions",
            Self::Translations => "translations",
        }
    }

    /// Does the answer hold newly generated tokens, one decode step each? `/invocations` may, so it counts as yes.
    pub const fn generates(self) -> bool {
        matches!(
            self,
            Self::Chat
                | Self::ChatBatch
                | Self::Completions
                | Self::Responses
                | Self::Messages
                | Self::GenerateTokens
                | Self::Invocations
                | Self::SystemOne
        )
    }

    /// Is the body a form (`multipart/form-data`), not JSON?
    pub const fn takes_form(self) -> bool {
        matches!(self, Self::Transcriptions | Self::Translations)
    }

    /// Does the pod run the prompt through the model (so that its KV cache matters)? Tokenizer and render routes do not, and of
    /// audio the tokens are not known.
    pub const fn prefills(self) -> bool {
        !matches!(self, Self::CountTokens | Self::Tokenize | Self::Detokenize | Self::Render | Self::RenderMessages)
            && !self.takes_form()
    }

    /// Shape of this API's errors.
    pub const fn shape(self) -> Shape {
        match self {
            Self::Messages | Self::CountTokens | Self::RenderMessages => Shape::Anthropic,
            _ => Shape::OpenAi,
        }
    }

    /// What ends a good stream of this API.
    pub const fn done_mark(self) -> DoneMark {
        match self {
            Self::Responses => DoneMark::Response,
            Self::Messages => DoneMark::MessageStop,
            _ => DoneMark::Done,
        }
    }
}
