"""All fields of a config with their defaults and meanings. An experiment sets only what differs from these.

A config file of your own begins with `from ddpm_jax.configs import defaults` or another shipped config, which works in a
clone and with an installed package (docs/installing.md).

The defaults are those of Ho et al. 2020 (arXiv 2006.11239), appendix B, for CIFAR-10, where the paper gives them.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """The defaults; not a config to train with."""
    config = ConfigDict()
    config.seed = 0  # 0..2**32-1: seed for the initial parameters, the order of the data and the training noise

    config.data = data = ConfigDict()
    # Data set: digits, image_folder (a folder of your own images), prepared (such a folder, converted by --mode=prepare),
    # array_folder (NumPy or TIFF arrays of any number of channels), any TFDS image set, or module:function.
    data.name = "cifar10"
    # Split to train on, or a slice such as train[:90%] or train[:1000]. An image folder has the splits train and test if it has
    # subfolders with these names.
    data.split = "train"
    data.data_dir = ""  # path of the folder (image_folder, prepared) or of the TFDS sets; "": TFDS's default folder
    # Height and width in pixels, such as (64, 96), or one number for a square; other images are center-cropped to these
    # proportions and resized.
    data.image_size = config_dict.FieldReference(32, field_type=object)
    data.channels = 3  # 1 (gray) or 3 (RGB); other images are converted. Arrays: any number >= 1
    data.dtype = "uint8"  # uint8 | uint16 | float32: type of the arrays of array_folder or of a set of your own
    data.num_classes = 10  # number of classes, with labels 0..num_classes-1; 0 for a set without labels
    data.random_flip = True  # mirror images left to right with probability 1/2
    data.background = "white"  # image_folder: color behind transparent pixels, a name or #rrggbb
    # image_folder: levels of black and white in gray files of more than 8 bits, such as (0, 4095); (): one range for the
    # whole set, found at the start. Arrays of uint16 or float32: the values that become -1 and 1; () for uint16: 0 and 65535.
    data.value_range = ()
    data.on_decode_error = "error"  # image_folder: stop (error) or leave the file out (skip) if a file cannot be read
    data.in_memory = "auto"  # always | never | auto: decode the set once and keep it in memory; auto: if it takes <= 2 GiB
    # Folder for what is known of image folders and for copies of sets in a bucket; "": $XDG_CACHE_HOME/ddpm_jax, by default
    # ~/.cache/ddpm_jax (docs/data.md).
    data.cache_dir = ""
    data.num_threads = 4  # number of threads that read and decode images, >= 1
    data.num_workers = 0  # number of processes that do so, each with its num_threads; 0: the training process (docs/data.md)
    # Number of prefetched batches, >= 1: so many batches of a host, of its images' uint8 bytes, are in its memory.
    data.prefetch = 8
    data.options = ConfigDict()  # options of a data set of your own
    # Image that the model is conditioned on: downsample (super-resolution) | gray (colorization) | pairs (image_folder: files
    # of a second folder) | module:function of your own; "" for none.
    data.condition = ""
    # Reduction of height and width, >= 2; bicubic (antialiased) | area (the mean of each square of pixels).
    data.downsample = ConfigDict({"factor": 4, "method": "bicubic"})
    # Folder with a condition image for each image, of the same name; its channels, 1 or 3, 0: those of the images.
    data.pairs = ConfigDict({"condition_dir": "", "condition_channels": 0})
    data.condition_options = ConfigDict()  # options of a condition of your own
    # Highest noise level added to condition images in training, in [0, 1); 0 for none. The network gets the level, so that
    # sampling can use any lower one, such as for small images that another model generated (2106.15282).
    data.condition_noise = 0.0

    config.model = model = ConfigDict()
    model.name = "unet"  # unet | module:function: the network
    model.class_conditional = False  # model p(x | class); needs data.num_classes
    # Probability of dropping the label and the condition image in training, in [0, 1); above 0 for classifier-free guidance.
    model.label_dropout = 0.0
    model.dtype = "float32"  # float32 | bfloat16: type of convolutions and matmuls; parameters stay float32
    model.unet = unet = ConfigDict()
    unet.ch = 128  # base number of channels; a multiple of 4, and of 32 from 128 on
    unet.ch_mult = (1, 2, 2, 2)  # channels of each level as a multiple of ch; each level halves the resolution
    unet.num_res_blocks = 2  # residual blocks per level, >= 1
    unet.attn_resolutions = (16,)  # heights of the feature maps with self-attention after each block, in pixels; () for none
    unet.mid_attention = True  # self-attention in the middle block, at the lowest resolution, as in Ho's network
    unet.dropout = 0.1  # dropout rate, in [0, 1)
    unet.num_heads = 1  # number of heads of each self-attention, >= 1
    unet.head_channels = 0  # channels of each head, instead of num_heads; 0 to use num_heads
    unet.scale_shift = False  # the time embedding scales and shifts the norms (Improved DDPM) instead of being added
    # Details in which published networks differ (docs/weights.md); the defaults are Ho's.
    unet.norm_groups = 0  # groups of the group norms, a divisor of ch; 0 for min(32, ch / 4)
    unet.norm_epsilon = 1e-6  # added to the variance in the group norms, in (0, 1)
    unet.downsample_padding = "same"  # same | symmetric: padding (0, 1) or (1, 1) of the convolutions that halve
    unet.time_embedding = "ddpm"  # ddpm | iddpm: frequencies and order of the sinusoidal embedding of time
    unet.time_scale = 1.0  # factor on the time, 0..1000, that the network is given, > 0; T / 1000 gives it 0..T-1
    unet.resblock_updown = False  # halve and double the resolution in residual blocks (ADM) instead of in convolutions
    unet.cond_resize = "bicubic"  # bicubic | bilinear | nearest: how condition images are enlarged to the size of the images
    unet.remat = False  # recompute activations in the backward pass: less memory, about a third more time
    model.options = ConfigDict()  # options of a network of your own

    config.diffusion = diffusion = ConfigDict()
    diffusion.schedule = "linear"  # linear | cosine | sigmoid | module:function: noise schedule
    diffusion.linear = ConfigDict({"beta_start": 1e-4, "beta_end": 0.02})  # first and last beta at T = 1000, in (0, 1)
    diffusion.cosine = ConfigDict({"s": 0.008, "max_beta": 0.999})  # offset, and upper limit of beta (2102.09672)
    # Ends of the part of the sigmoid that is used, its temperature, and the upper limit of beta (2212.11972).
    diffusion.sigmoid = ConfigDict({"start": -3.0, "end": 3.0, "tau": 1.0, "max_beta": 0.999})
    diffusion.schedule_options = ConfigDict()  # options of a schedule of your own
    diffusion.num_timesteps = 1000  # T, number of steps of the trained chain
    # Rescale the schedule so that alphas_cumprod is 0 at T-1 (2305.08891). Needs prediction v or x_start, and a
    # sampling.spacing that starts at T-1, such as trailing. Weightings that are 0 at SNR 0 (snr, min_snr_gamma, p2) become 1
    # at that step, as in the program of min_snr_gamma's authors.
    diffusion.zero_terminal_snr = False
    diffusion.prediction = "eps"  # eps | x_start | v: what the network predicts
    diffusion.variance = "fixed_large"  # fixed_small | fixed_large | learned_range: variance of the reverse steps
    # simple | hybrid | hybrid_mean | vlb | vlb_mean | module:function: training loss; variance learned_range needs a loss
    # that trains it: one of hybrid, hybrid_mean, vlb, vlb_mean, or your own.
    diffusion.loss = "simple"
    diffusion.loss_options = ConfigDict()  # options of a loss of your own
    # simple | snr | truncated_snr | min_snr_gamma | p2 | edm | module:function: weight of the squared error at each t.
    diffusion.weighting = "simple"
    diffusion.min_snr_gamma = ConfigDict({"gamma": 5.0})  # upper limit of the SNR, > 0 (2303.09556)
    diffusion.p2 = ConfigDict({"gamma": 1.0, "k": 1.0})  # exponent and offset, > 0 (2204.00227)
    diffusion.edm = ConfigDict({"sigma_data": 0.5})  # standard deviation of the data, > 0 (2206.00364)
    diffusion.weighting_options = ConfigDict()  # options of a weighting of your own
    # uniform | low_discrepancy | second_moment | module:function: distribution of t in training.
    diffusion.timestep_sampler = "uniform"
    diffusion.timestep_sampler_options = ConfigDict()  # options of a timestep sampler of your own
    diffusion.clip_denoised = True  # clip each predicted x_start to [-1, 1] when sampling

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "adam"  # adam | adamw | lion | muon | sgd | module:function
    # Decay of both moments, in [0, 1), and a number >= 0 added to the root of the second one (1412.6980).
    optimizer.adam = ConfigDict({"b1": 0.9, "b2": 0.999, "eps": 1e-8})
    # As adam; weight_decay >= 0 acts on kernels only and is multiplied by the learning rate (1711.05101).
    optimizer.adamw = ConfigDict({"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.01})
    # Decay of the momentum in the update and in the state, in [0, 1), and weight decay as adamw's (2302.06675); a learning
    # rate 3 to 10 times smaller than Adam's.
    optimizer.lion = ConfigDict({"b1": 0.9, "b2": 0.99, "weight_decay": 0.1})
    # Kernels by Muon (github.com/KellerJordan/Muon), the other parameters by Adam.
    optimizer.muon = muon = ConfigDict()
    muon.beta = 0.95  # decay of the momentum, in [0, 1)
    muon.nesterov = True  # Nesterov's momentum, in both parts
    muon.ns_steps = 5  # Newton-Schulz iterations, >= 1
    muon.consistent_rms = 0.2  # root mean square of Muon's updates, > 0; 0.2 is about Adam's (2502.16982)
    muon.b1, muon.b2, muon.eps = 0.9, 0.999, 1e-8  # of Adam, as above
    muon.weight_decay = 0.0  # >= 0, as adamw's, of Muon's kernels
    optimizer.sgd = ConfigDict({"momentum": 0.9, "nesterov": False})  # decay of the momentum, in [0, 1); 0 for none
    optimizer.options = ConfigDict()  # options of an optimizer of your own
    optimizer.learning_rate = 2e-4  # highest learning rate, > 0
    # constant | cosine | linear | inverse_sqrt | cooldown | module:function: learning rate over train.num_steps.
    optimizer.schedule = "constant"
    optimizer.cosine = ConfigDict({"final_fraction": 0.0})  # last rate as a fraction of the first, 0..1 (1608.03983)
    optimizer.linear = ConfigDict({"final_fraction": 0.0})  # as cosine's
    optimizer.inverse_sqrt = ConfigDict({"t_ref": 70_000.0})  # number of steps before the rate decreases, > 0 (2312.02696)
    optimizer.cooldown = ConfigDict({"fraction": 0.2})  # last part of the steps, a line to 0, in (0, 1] (2405.18392)
    optimizer.schedule_options = ConfigDict()  # options of a learning-rate schedule of your own
    optimizer.warmup_steps = 5000  # linear warm-up: step s uses (s + 1) / warmup_steps of the rate (Ho's: s / warmup_steps)
    optimizer.clip_norm = 1.0  # largest global norm of the gradient; 0 for no clipping
    optimizer.skip_nonfinite = 0  # number of steps in a row that are skipped if their gradient is not finite; 0 for none
    optimizer.accumulation_steps = 1  # micro-batches per step, >= 1; train.batch_size is the sum over all of them

    config.ema = ema = ConfigDict()
    ema.decay = 0.9999  # EMA decay, in [0, 1); with a warm-up: min(decay, (1 + step) / (10 + step))
    ema.extra_decays = ()  # decays of additional EMAs; each takes the memory of one copy of the parameters
    # Relative lengths (sigma_rel of EDM2, 2312.02696) of power-function EMAs, such as (0.05, 0.1). From two or more of them
    # and the kept checkpoints, an EMA of any other length can be computed after training.
    ema.power_sigma_rel = ()

    config.mesh = mesh = ConfigDict()
    # Devices in training: mesh.data copies of the training state, each sharded over mesh.fsdp devices to save memory (FSDP;
    # docs/performance.md). Their product is the number of devices; -1: the rest. fsdp=1: every device has a whole copy.
    mesh.data = -1
    mesh.fsdp = 1

    config.train = train = ConfigDict()
    train.num_steps = 800_000  # number of optimizer steps
    train.batch_size = 128  # images per step, over all devices and micro-batches
    train.deterministic = True  # GPU only: a resumed run is bit-identical; False is about 6% faster
    train.log_every = 100  # steps between log lines
    train.checkpoint_every = 5000  # steps between checkpoints
    train.max_to_keep = 3  # number of latest checkpoints to keep
    train.keep_period = 100_000  # never delete checkpoints whose step is a multiple of this; 0 for none
    train.sample_every = 10_000  # steps between image grids of samples (at most 100 images); 0 for none, also at the end
    # Solver steps of these grids (dpmpp_2m, or ddim where it does not apply) if config.sampling takes more;
    # 0: use config.sampling. The last grid uses config.sampling if that is affordable.
    train.sample_num_steps = 20
    train.eval_every = 0  # steps between evaluations by the metrics of config.evaluation; 0 for none
    train.eval_num_samples = 1000  # number of images generated for each of these evaluations; 0: none
    # Number of held-out images (evaluation.heldout_split) whose loss is computed in each of them: eval/loss_ema, eval/loss_raw,
    # with fixed t and noise; 0: none.
    train.eval_num_heldout = 1000
    # Score of the evaluations during training whose best checkpoint is never deleted: eval/frechet | eval/kid |
    # eval/inception_score | eval/precision | eval/recall | eval/loss_ema | eval/loss_raw; auto: eval/frechet if it is
    # measured; "" for none.
    train.keep_best = "auto"
    # Weights to start from: a workdir (its EMA, at the newest step or at N with "@N" after it), or a file of --mode=export; "":
    # initial values.
    train.init_from = ""
    # Parameters that get initial values in spite of init_from: patterns of paths in parameters.txt, such as ("conv_out/*",).
    # The class embedding always does if the classes differ, in number or name.
    train.init_new = ()
    train.frozen = ()  # parameters that are not trained: patterns of paths, such as ("down*", "temb_*")
    # Where metrics are logged: any of jsonl (the file metrics.jsonl, which is always written), tensorboard, wandb (Weights &
    # Biases; its environment variables apply) and module:Class of your own.
    train.trackers = ("jsonl", "tensorboard")

    config.sampling = sampling = ConfigDict()
    # ancestral | ddim | dpmpp_2m | dpmpp_2m_sde | unipc | heun | ode | module:function.
    sampling.sampler = "ddim"
    sampling.num_steps = 50  # N, 1..T; network evaluations per image: N, for heun 2N - 1, for ode about 4N
    sampling.spacing = "leading"  # leading | linspace | trailing | quadratic | karras | logsnr: which of the T timesteps
    # Noise of each step, >= 0; 0 is deterministic, 1 is ancestral sampling with fixed_small.
    sampling.ddim = ConfigDict({"eta": 0.0})
    sampling.unipc = ConfigDict({"order": 2})  # order of the solver, 1, 2 or 3
    sampling.heun = heun = ConfigDict()
    heun.churn = 0.0  # total added noise, EDM's S_churn, >= 0; 0 is deterministic
    heun.churn_min = 0.0  # lowest sigma at which noise is added, EDM's S_min, >= 0
    heun.churn_max = 1e6  # highest sigma at which noise is added, EDM's S_max, >= churn_min
    heun.churn_noise = 1.0  # factor on the added noise, EDM's S_noise, > 0
    sampling.sampler_options = ConfigDict()  # options of a sampler of your own
    # Condition images, if data.condition is set: an image file or a folder of them, at the size of the condition; "": those
    # of images of the data set.
    sampling.condition_images = ""
    # Split of the data set to take them from; auto: evaluation.heldout_split, or data.split if no images are held out.
    sampling.condition_split = "auto"
    sampling.condition_samples = 1  # images to generate for each condition image, >= 1
    sampling.condition_noise = 0.0  # noise level added to condition images, 0..data.condition_noise
    # Scale of classifier-free guidance, >= 0, for models trained with label_dropout: 1 is no guidance, 0 ignores the class
    # and the condition image.
    sampling.guidance_scale = 1.0
    sampling.guidance_interval = (0.0, 1.0)  # part of the chain that is guided; 0 is the image, 1 is pure noise
    sampling.guidance_rescale = 0.0  # 0..1: reduces the overexposure that large guidance scales cause (2305.08891)
    sampling.num_images = 64  # number of images to generate
    # Images per batch, over all devices; 0: 64 per GPU or TPU core, or 64 on CPUs. Does not change the images.
    sampling.batch_size = 0
    sampling.seed = 0  # 0..2**32-1: seed of the noise; image i depends on the seed and i only
    # Parameters to sample with: ema | raw | decay_0.999 (one of ema.extra_decays) | power_0.07 (a power-function EMA of any
    # length, computed from those of ema.power_sigma_rel).
    sampling.params = "ema"
    # Class to generate with a class-conditional model: a label in 0..num_classes-1 or the name of a class; -1: each in turn.
    sampling.label = config_dict.FieldReference(-1, field_type=object)
    # Step of the checkpoint to use; -1 for the latest, best for that with the best score (train.keep_best).
    sampling.checkpoint_step = config_dict.FieldReference(-1, field_type=object)
    sampling.num_intermediates = 0  # number of intermediate steps to save, of the first 64 images; 0 for none
    # One or three channels that pictures show, (3, 0, 1): red is channel 3; (): the first three, or the first of one or two.
    sampling.shown_channels = ()
    # npz (images.npz) | png (a folder png/ with a file for each image) | both; npz is always written if the images are not
    # gray or RGB of 8 bits.
    sampling.format = "npz"

    config.evaluation = evaluation = ConfigDict()
    # Any of frechet, sfid (with inception), kid, inception_score, precision_recall, psnr (needs data.condition),
    # bits_per_dim, ode_bits_per_dim.
    evaluation.metrics = ("frechet", "kid", "precision_recall", "bits_per_dim")
    evaluation.features = "inception"  # inception | pixels | pixels_16 (averaged down to 16x16) | module:function of your own
    evaluation.features_options = ConfigDict()  # options of a function of your own
    evaluation.inception_path = ""  # .pth file of the Inception weights; "": search where PyTorch tools keep it, or download
    evaluation.num_images = 50_000  # number of images to generate with config.sampling
    evaluation.class_proportions = "reference"  # reference | uniform: proportions of the classes that are generated
    evaluation.batch_size = 0  # images per batch of features and bits/dim, as sampling.batch_size
    # File with the statistics or images of the reference set, by --mode=compute_stats or another tool; "": use
    # evaluation.split.
    evaluation.reference = ""
    evaluation.split = ""  # split of data.name to compare generated images with; "": data.split
    evaluation.max_features = 10_000  # largest number of images of each set for kid and precision_recall; 0: all
    # Split of data.name that was not trained on, for bits/dim and the scores of real images; "auto": test, validation or val,
    # whichever exists; "" for none.
    evaluation.heldout_split = "auto"
    evaluation.num_heldout_images = 0  # number of held-out images to use, the first ones; 0: all
    # bits_per_dim: number of sampled timesteps per image (even) for an unbiased estimate; 0: all T, without sampling.
    evaluation.vlb_num_timesteps = 0
    # exact | tanh: normal distribution function in the term L_0; tanh is the approximation of improved- and guided-diffusion.
    evaluation.vlb_decoder = "exact"
    # ode_bits_per_dim: random directions per image of Hutchinson's trace estimator; 0: exact trace, for small images.
    evaluation.hutchinson_samples = 1
    evaluation.ode_tolerance = 1e-5  # ode_bits_per_dim: relative and absolute tolerance of the ODE solver, in (0, 1)
    # Steps of the checkpoints to evaluate; -1 for the latest, 'best' as in sampling.checkpoint_step, 'all' for all of them.
    evaluation.checkpoint_steps = (-1,)
    evaluation.params = ()  # parameters to evaluate, named as in sampling.params; (): sampling.params
    evaluation.samplers = ()  # samplers to evaluate; (): sampling.sampler
    evaluation.num_steps = ()  # numbers of steps to evaluate each sampler with; (): sampling.num_steps

    # The modes inpaint, image_to_image and interpolate, which start from images.
    config.edit = edit = ConfigDict()
    edit.images = ()  # files to start from, pictures or arrays (.npy, .npz) of the data's type; (): images of the data set
    edit.split = ""  # split of the data set to take images from, such as test; "": data.split
    edit.start_index = 0  # index of the first image taken from the data set
    edit.num_images = 4  # number of images taken from the data set
    edit.samples_per_image = 4  # inpaint, image_to_image: number of samples for each image
    edit.mask = "center"  # inpaint: what to fill in: center | left | right | top | bottom, or an image file that is white there
    edit.jump_length = 0  # inpaint: RePaint's jump length in steps; 0: sampling.num_steps / 25, as the paper's 10 of 250
    edit.resampling = 10  # inpaint: RePaint's resampling steps, >= 1; 1 is fast, but the filled part fits badly
    edit.strength = 0.5  # image_to_image: (0, 1], fraction of the steps to run; 1 starts from pure noise and keeps nothing
    edit.num_frames = 9  # interpolate: images from one end to the other, both ends included, >= 2
    edit.inversion_iters = 3  # interpolate: network evaluations per inversion step; more reproduce the images better

    config.export = export = ConfigDict()
    # safetensors (the parameters, in one file) | diffusers (a DDPMPipeline of Hugging Face's diffusers) | stablehlo (the
    # network and the sampler of config.sampling, as programs that run without this package) | onnx (the network and one step of
    # the sampler, for ONNX Runtime).
    export.format = "safetensors"
    export.platforms = ("cpu", "cuda", "tpu")  # stablehlo: platforms that the programs run on, any of cpu, cuda, rocm and tpu
    export.opset = 20  # onnx: version of ONNX's operators, 17 to 23; an older ONNX Runtime may need an older one

    config.visualize = visualize = ConfigDict()
    visualize.format = "png"  # png (figures) | html (one page for a browser, to move, play and try everything)
    visualize.num_images = 4  # png: number of rows: real images being noised, and images being generated
    visualize.num_stages = 11  # png: number of columns, from image to noise and from noise to image
    visualize.start_index = 0  # index of the first real image in the data set
    visualize.animation = "webp"  # png: webp, gif, or "" for none: forward, reverse and chain as animations
    visualize.animation_frames = 40  # png: about so many in each direction
    visualize.animation_seconds = 8.0  # png: for both directions
    visualize.page_images = 10  # html: number of real images; fewer if they are large
    visualize.samplers = ("ancestral", "ddim")  # html: samplers whose chains are recorded
    visualize.num_steps = (10, 50, 1000)  # html: numbers of steps of each of them, >= 1, at most T
    visualize.num_seeds = 2  # html: seeds of recorded chains, sampling.seed and the next ones; fewer if images are large
    visualize.num_terms = 100  # html: timesteps at which the terms of the bound are computed, >= 2, at most T; 0: all
    visualize.network = True  # html: embed the network, if it is small enough, so that the page can generate images
    visualize.onnxruntime_path = ""  # html: a copy of onnxruntime-web-1.30.0.tgz, which runs it; "": download it once
    return config
