// Greedy tokens of an exported folder, by an unmodified @huggingface/transformers.
//
//   node generate.mjs JOB.json          (NODE_PATH does not work for modules: this file is copied beside node_modules)
//
// JOB: {models, name, image, text, max_new_tokens, feed, dtype}
//   models/name   the exported folder
//   feed          input name -> {type, dims, file}: what transformers made of the same image and question
//   dtype         null: as the folder's own config.json says
// Prints one JSON document: {fixed: [tokens], own: {input_ids, pixels: {dims, max_difference}, tokens}, dtypes}
import fs from 'node:fs';
import { AutoModelForImageTextToText, AutoProcessor, RawImage, Tensor, env } from '@huggingface/transformers';

const ARRAYS = { float32: Float32Array, int64: BigInt64Array, bool: Uint8Array };

function tensor({ type, dims, file }) {
    const bytes = fs.readFileSync(file);
    const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
    return new Tensor(type, new ARRAYS[type](buffer), dims);
}

async function generated(model, inputs, n) {
    const options = { max_new_tokens: n, min_new_tokens: n, do_sample: false };
    const whole = await model.generate({ ...inputs, ...options });
    return whole.slice(null, [inputs.input_ids.dims[1], null]).tolist()[0].map(Number);
}

function difference(a, b) {
    if (a.length !== b.length) return null;
    let largest = 0;
    for (let i = 0; i < a.length; ++i) largest = Math.max(largest, Math.abs(a[i] - b[i]));
    return largest;
}

const job = JSON.parse(fs.readFileSync(process.argv[2], 'utf8'));
env.allowRemoteModels = false;
env.localModelPath = job.models;

const options = job.dtype === null ? {} : { dtype: job.dtype };
const model = await AutoModelForImageTextToText.from_pretrained(job.name, options);
const feed = Object.fromEntries(Object.entries(job.feed).map(([name, value]) => [name, tensor(value)]));
const result = { fixed: await generated(model, feed, job.max_new_tokens) };
result.dtypes = Object.fromEntries(Object.entries(model.sessions).map(([name, session]) => [name, session.config.dtype]));

const processor = await AutoProcessor.from_pretrained(job.name);
const content = [{ type: 'image' }, { type: 'text', text: job.text }];
const text = processor.apply_chat_template([{ role: 'user', content }], { add_generation_prompt: true });
const image = await RawImage.read(job.image);
let inputs;
if (model.config.model_type === 'gemma4') {
    // its processor writes line breaks around the image, which transformers' does not: as the card does it
    const { num_soft_tokens_per_image, ...pixels } = await processor.image_processor(image);
    const { boi_token, image_token, eoi_token } = processor;
    const whole = text.replace(image_token, boi_token + image_token.repeat(num_soft_tokens_per_image[0]) + eoi_token);
    inputs = { ...processor.tokenizer(whole, { add_special_tokens: false }), ...pixels };
} else {
    // some of its processors take the image first
    const imageFirst = ['llava', 'lfm2_vl'].includes(model.config.model_type);
    inputs = imageFirst ? await processor(image, text) : await processor(text, [image]);
}
result.own = {
    text,
    input_ids: inputs.input_ids.tolist()[0].map(Number),
    pixels: {
        dims: inputs.pixel_values.dims,
        max_difference: difference(inputs.pixel_values.data, feed.pixel_values.data),
    },
    tokens: await generated(model, inputs, job.max_new_tokens),
};
console.log(JSON.stringify(result));
