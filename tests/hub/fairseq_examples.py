"""The Python blocks of fairseq's BART READMEs, to be run with another way of loading.

From README.md, README.glue.md and README.summarization.md in examples/bart of fairseq,
copyright Facebook, Inc. and its affiliates, MIT licence. Lines that import or load are marked
`# load`; everything else is as it stands there.
"""

BLOCKS = {
    "load": """
import torch  # load
bart = torch.hub.load('pytorch/fairseq', 'bart.large')  # load
bart.eval()  # disable dropout (or leave in train mode to finetune)
""",
    "from_pretrained": """
from fairseq.models.bart import BARTModel  # load
bart = BARTModel.from_pretrained('/path/to/bart.large', checkpoint_file='model.pt')  # load
bart.eval()  # disable dropout (or leave in train mode to finetune)
""",
    "encode": """
tokens = bart.encode('Hello world!')
assert tokens.tolist() == [0, 31414, 232, 328, 2]
bart.decode(tokens)  # 'Hello world!'
""",
    "features": """
# Extract the last layer's features
last_layer_features = bart.extract_features(tokens)
assert last_layer_features.size() == torch.Size([1, 5, 1024])

# Extract all layer's features from decoder (layer 0 is the embedding layer)
all_layers = bart.extract_features(tokens, return_all_hiddens=True)
assert len(all_layers) == 13
assert torch.all(all_layers[-1] == last_layer_features)
""",
    "pairs": """
# Download BART already finetuned for MNLI
bart = torch.hub.load('pytorch/fairseq', 'bart.large.mnli')  # load
bart.eval()  # disable dropout for evaluation

# Encode a pair of sentences and make a prediction
tokens = bart.encode('BART is a seq2seq model.', 'BART is not sequence to sequence.')
bart.predict('mnli', tokens).argmax()  # 0: contradiction

# Encode another pair of sentences
tokens = bart.encode('BART is denoising autoencoder.', 'BART is version of autoencoder.')
bart.predict('mnli', tokens).argmax()  # 2: entailment
""",
    "new_head": """
bart.register_classification_head('new_task', num_classes=3)
logprobs = bart.predict('new_task', tokens)
""",
    "batched": """
import torch  # load
from fairseq.data.data_utils import collate_tokens  # load

bart = torch.hub.load('pytorch/fairseq', 'bart.large.mnli')  # load
bart.eval()

batch_of_pairs = [
    ['BART is a seq2seq model.', 'BART is not sequence to sequence.'],
    ['BART is denoising autoencoder.', 'BART is version of autoencoder.'],
]

batch = collate_tokens(
    [bart.encode(pair[0], pair[1]) for pair in batch_of_pairs], pad_idx=1
)

logprobs = bart.predict('mnli', batch)
print(logprobs.argmax(dim=1))
# tensor([0, 2])
""",
    "gpu": """
bart.register_classification_head('new_task', num_classes=3)  # load
bart.cuda()
bart.predict('new_task', tokens)
""",
    "fill_mask": """
bart = torch.hub.load('pytorch/fairseq', 'bart.base')  # load
bart.eval()
bart.fill_mask(['The cat <mask> on the <mask>.'], topk=3, beam=10)
bart.fill_mask(['The cat <mask> on the <mask>.', 'The dog <mask> on the <mask>.'], topk=3, beam=10)
bart.fill_mask(['The cat <mask> on the <mask>.'], topk=3, beam=10, match_source_len=False)
""",
    "mnli": """
label_map = {0: 'contradiction', 1: 'neutral', 2: 'entailment'}
ncorrect, nsamples = 0, 0
bart.cuda()
bart.eval()
with open('glue_data/MNLI/dev_matched.tsv') as fin:
    fin.readline()
    for index, line in enumerate(fin):
        tokens = line.strip().split('\\t')
        sent1, sent2, target = tokens[8], tokens[9], tokens[-1]
        tokens = bart.encode(sent1, sent2)
        prediction = bart.predict('mnli', tokens).argmax().item()
        prediction_label = label_map[prediction]
        ncorrect += int(prediction_label == target)
        nsamples += 1
        print('| Accuracy: ', float(ncorrect)/float(nsamples))
""",
    "cnn": """
bart = torch.hub.load('pytorch/fairseq', 'bart.large.cnn')  # load
bart.cuda()
bart.eval()
bart.half()
count = 1
bsz = 32
with open('test.source') as source, open('test.hypo', 'w') as fout:
    sline = source.readline().strip()
    slines = [sline]
    for sline in source:
        if count % bsz == 0:
            with torch.no_grad():
                hypotheses_batch = bart.sample(slines, beam=4, lenpen=2.0, max_len_b=140, min_len=55, no_repeat_ngram_size=3)

            for hypothesis in hypotheses_batch:
                fout.write(hypothesis + '\\n')
                fout.flush()
            slines = []

        slines.append(sline.strip())
        count += 1
    if slines != []:
        hypotheses_batch = bart.sample(slines, beam=4, lenpen=2.0, max_len_b=140, min_len=55, no_repeat_ngram_size=3)
        for hypothesis in hypotheses_batch:
            fout.write(hypothesis + '\\n')
            fout.flush()
""",  # noqa: E501
    "glue": """
from fairseq.models.bart import BARTModel  # load

bart = BARTModel.from_pretrained('checkpoints/', checkpoint_file='checkpoint_best.pt', data_name_or_path='RTE-bin')  # load

label_fn = lambda label: bart.task.label_dictionary.string(
    [label + bart.task.label_dictionary.nspecial]
)
ncorrect, nsamples = 0, 0
bart.cuda()
bart.eval()
with open('glue_data/RTE/dev.tsv') as fin:
    fin.readline()
    for index, line in enumerate(fin):
        tokens = line.strip().split('\\t')
        sent1, sent2, target = tokens[1], tokens[2], tokens[3]
        tokens = bart.encode(sent1, sent2)
        prediction = bart.predict('sentence_classification_head', tokens).argmax().item()
        prediction_label = label_fn(prediction)
        ncorrect += int(prediction_label == target)
        nsamples += 1
print('| Accuracy: ', float(ncorrect)/float(nsamples))
""",  # noqa: E501
}
